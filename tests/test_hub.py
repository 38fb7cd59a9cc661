from __future__ import annotations

import contextlib
import email.utils
import errno
import hashlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import types
from collections import namedtuple
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from huggingface_hub import close_session, constants
from safetensors.numpy import save

from jaxtransfer import download, hub
from jaxtransfer.errors import DownloadError, FormatError, ReferenceNotFoundError
from jaxtransfer.formats import inspect_weights, read_weights
from tests.hub_server import Answer, Repository, Served, Site, refusal

TOKEN = "hf_SecretSecretSecretSecret"
COMMIT = "c" * 40

WEIGHTS = {"a/kernel": np.arange(50_000, dtype=np.float32), "b": np.ones((2, 3), np.int8)}
CONTENT = save(WEIGHTS, {"made by": "a test"})
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SHARDS = {
    "model-00001-of-00002.safetensors": save({"a": WEIGHTS["a/kernel"]}),
    "model-00002-of-00002.safetensors": save({"b": WEIGHTS["b"]}),
}
INDEX = json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}).encode()


def sharded(name: str = "model") -> dict[str, bytes]:
    return {f"{name}.safetensors.index.json": INDEX, **SHARDS}


@pytest.fixture
def embedded(tmp_path, monkeypatch) -> Path:
    """A package with the embedded checkpoint `net`, and a folder that is no checkpoint."""
    package = tmp_path / "package"
    for name in ("net", "empty"):
        (package / "checkpoints" / name).mkdir(parents=True)
    (package / "checkpoints" / "net" / "config.json").write_text("{}")
    monkeypatch.setattr(hub, "_PACKAGE", package)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return package / "checkpoints"


def test_only_folders_with_a_config_are_checkpoints(embedded):
    assert hub.embedded_checkpoints() == {"net": embedded / "net"}


def test_a_clone_has_its_checkpoints_beside_the_package(embedded, monkeypatch):
    monkeypatch.setattr(hub, "_PACKAGE", embedded.parent / "jaxtransfer")
    assert hub.embedded_checkpoints() == {"net": embedded / "net"}


def test_an_installation_without_checkpoints_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_PACKAGE", tmp_path / "a" / "b")
    assert hub.embedded_checkpoints() == {}
    with pytest.raises(ReferenceNotFoundError, match=r"\(none\)"):
        hub.resolve("checkpoints/net")


@pytest.mark.parametrize(
    "reference", ["checkpoints/net", "checkpoints/net/", Path("checkpoints/net")]
)
def test_an_embedded_checkpoint_is_found_from_anywhere(embedded, reference):
    assert hub.resolve(reference) == embedded / "net"


def test_a_path_that_exists_goes_first(embedded):
    own = Path("checkpoints/net")
    own.mkdir(parents=True)
    assert hub.resolve("checkpoints/net").resolve() == own.resolve()
    assert hub.resolve(own.resolve()) == own.resolve()


def test_the_home_folder_may_be_written_as_a_tilde(embedded, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert hub.resolve("~/mine") == tmp_path / "mine"


@pytest.mark.parametrize(
    "reference",
    ["nothing", "net", "checkpoints/empty", "~nobody-of-that-name/x", "x" * 5000, "a\0b"],
)
def test_what_leads_nowhere_is_an_error_that_names_what_there_is(embedded, reference):
    with pytest.raises(ReferenceNotFoundError, match=r"embedded checkpoint \(checkpoints/net\)"):
        hub.resolve(reference)


@pytest.fixture(scope="module", autouse=True)
def session():
    """One HTTP client for all tests, for it takes long to load the certificates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        close_session()
        yield
        close_session()


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The waits that were asked for; none takes time."""
    asked: list[float] = []
    clock = types.SimpleNamespace(**{**vars(time), "sleep": asked.append})
    monkeypatch.setattr(download, "time", clock)
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
    monkeypatch.setattr("huggingface_hub.file_download.time", clock)
    return asked


@pytest.fixture
def site(tmp_path, monkeypatch, waits):
    """A Hub with a CDN, whose caches are empty; nothing else can be reached."""
    hub_site, cdn = Site(), Site()
    hub_site.cdn = cdn
    monkeypatch.setattr(constants, "ENDPOINT", hub_site.url)
    template = hub_site.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("JAXTRANSFER_CACHE", str(tmp_path / "cache"))
    yield hub_site
    hub_site.close()
    cdn.close()


@pytest.fixture
def offline(monkeypatch):
    def go() -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    return go


def message_of(reference: str, error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        hub.resolve(reference)
    message = str(caught.value)
    assert TOKEN not in message and "signature" not in message and "\n" not in message
    assert "expected" in message and "found" in message and "; " in message
    return message


def cached_files() -> list[str]:
    folder = download.cache_folder()
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


# Files at a URL


def serve(site: Site, name: str = "net.safetensors", **options) -> str:
    """Serve the weights; the reference to them."""
    site.files[f"/{name}"] = Served(CONTENT, **options)
    return f"{site.url}/{name}#sha256={SHA256}"


def test_a_file_is_fetched_once(site, offline):
    reference = serve(site)
    path = hub.resolve(reference)
    assert path == download.cache_folder() / f"{SHA256}-net.safetensors"
    assert path.read_bytes() == CONTENT
    assert cached_files() == [path.name]
    offline()
    assert hub.resolve(reference.replace(SHA256, SHA256.upper())) == path
    (asked,) = site.asked("/net.safetensors")
    assert asked["accept-encoding"] == "identity" and "authorization" not in asked


def test_a_cached_file_that_was_changed_is_fetched_again(site):
    path = hub.resolve(reference := serve(site))
    path.write_bytes(CONTENT[:-1] + b"!")
    assert hub.resolve(reference).read_bytes() == CONTENT


def test_another_file_than_was_asked_for_is_refused_and_deleted(site):
    reference = f"{serve(site).partition('#')[0]}#sha256={'0' * 64}"
    message = message_of(reference, DownloadError)
    assert "0" * 64 in message and SHA256 in message and f"{len(CONTENT)} bytes" in message
    assert cached_files() == []


def test_the_first_digits_of_the_hash_are_enough_and_must_be_right(site):
    address = serve(site).partition("#")[0]
    path = hub.resolve(f"{address}#sha256={SHA256[:8]}")
    assert path.name == f"{SHA256[:8]}-net.safetensors" and path.read_bytes() == CONTENT
    path.write_bytes(b"damaged")
    assert hub.resolve(f"{address}#sha256={SHA256[:8]}").read_bytes() == CONTENT
    with pytest.raises(DownloadError, match=f"SHA-256 {'0' * 8}"):
        hub.resolve(f"{address}#sha256={'0' * 8}")
    with pytest.raises(ReferenceNotFoundError, match="or the first of them"):
        hub.resolve(f"{address}#sha256={SHA256[:7]}")


@pytest.mark.parametrize(
    ("path", "name"),
    [("a%20b/c%2Fd.npz", "c_d.npz"), ("", "file"), ("x" * 300 + ".npz", "x" * 96 + ".npz")],
)
def test_the_name_in_the_cache_is_safe(site, path, name):
    site.files[f"/{path.replace('%20', ' ').replace('%2F', '/')}"] = Served(CONTENT)
    assert hub.resolve(f"{site.url}/{path}#sha256={SHA256}").name == f"{SHA256}-{name}"


def test_a_download_that_is_cut_off_goes_on_where_it_ended(site):
    path = hub.resolve(serve(site, cuts=[1000, 2000]))
    assert path.read_bytes() == CONTENT
    asked = site.asked("/net.safetensors")
    assert [headers.get("range") for headers in asked] == [None, "bytes=1000-", "bytes=3000-"]
    assert [headers.get("if-range") for headers in asked] == [None, '"first"', '"first"']
    assert cached_files() == [path.name]


def test_a_later_call_goes_on_too(site, waits):
    reference = serve(site, cuts=[1000] * 5)
    message = message_of(reference, DownloadError)
    assert "RemoteProtocolError" in message and "goes on" in message
    assert waits == list(download._WAITS)
    assert cached_files() == [f"{SHA256}-net.safetensors{end}" for end in (".part", ".part.etag")]
    path = hub.resolve(reference)
    assert path.read_bytes() == CONTENT
    assert site.asked("/net.safetensors")[-1]["range"] == "bytes=5000-"
    assert cached_files() == [path.name]


def test_a_file_that_was_replaced_meanwhile_is_not_spliced(site):
    reference = serve(site)
    site.files["/net.safetensors"] = Served(b"old" * 10_000, '"old"', cuts=[1000] * 5)
    message_of(reference, DownloadError)
    serve(site)
    assert hub.resolve(reference).read_bytes() == CONTENT
    assert site.asked("/net.safetensors")[-1]["range"] == "bytes=5000-"


def test_a_server_that_gives_no_parts_is_asked_for_all(site):
    assert hub.resolve(serve(site, cuts=[1000], ranges=False)).read_bytes() == CONTENT


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_strong_etag_a_download_begins_anew(site, etag):
    assert hub.resolve(serve(site, cuts=[1000], etag=etag)).read_bytes() == CONTENT
    assert "range" not in site.asked("/net.safetensors")[1]


def test_another_part_than_was_asked_for_is_not_taken(site):
    wrong = Answer(206, {"Content-Range": f"bytes 7-1006/{len(CONTENT)}"}, bytes(1000))
    reference = serve(site, cuts=[1000] * 5)
    message_of(reference, DownloadError)
    serve(site, answers=[wrong])
    assert hub.resolve(reference).read_bytes() == CONTENT
    assert ["range" in headers for headers in site.asked("/net.safetensors")][-2:] == [True, False]
    serve(site, name="unasked", answers=[wrong])
    assert hub.resolve(reference.replace("net.safetensors", "unasked")).read_bytes() == CONTENT


def test_a_download_of_which_nothing_is_missing_needs_no_more_bytes(site):
    part = download.cache_folder() / f"{SHA256}-net.safetensors.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT)
    part.with_name(f"{part.name}.etag").write_text('"first"')
    assert hub.resolve(serve(site)).read_bytes() == CONTENT


@pytest.mark.parametrize("declared", [len(CONTENT) + 10, len(CONTENT) - 10])
def test_a_wrong_content_length_gives_no_file(site, declared):
    message_of(serve(site, declared=declared, ranges=False), DownloadError)
    assert f"{SHA256}-net.safetensors" not in cached_files()


def test_a_file_of_unknown_length_is_fetched_and_its_hash_tells_whether_it_is_whole(site):
    reference = serve(site, declared=0, cuts=[1000])
    assert "found 1000 bytes" in message_of(reference, DownloadError)
    assert hub.resolve(reference).read_bytes() == CONTENT
    assert "range" not in site.asked("/net.safetensors")[1]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(site, waits, status):
    assert hub.resolve(serve(site, answers=[Answer(status)] * 2)).read_bytes() == CONTENT
    assert waits == list(download._WAITS[:2])


def test_the_wish_of_a_server_to_wait_is_respected(site, waits):
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    wishes = ["7", date, "soon", "Mon, 01 Jan 0001 00:00:00 +2359"]
    hub.resolve(serve(site, answers=[Answer(429, {"Retry-After": wish}) for wish in wishes]))
    assert waits[0] == 7.0 and 25 < waits[1] <= 30
    assert waits[2] == download._WAITS[2] and waits[3] in (0.0, download._WAITS[3])


def test_a_server_that_wants_a_long_wait_is_not_waited_for(site, waits):
    reference = serve(site, answers=[Answer(429, {"Retry-After": "3600"})])
    assert "429 Too Many Requests and the wish to wait 3600" in message_of(reference, DownloadError)
    assert waits == []


def test_a_server_that_stays_busy_is_given_up(site, waits):
    message = message_of(serve(site, answers=[Answer(503)] * 99), DownloadError)
    assert "the answer 503 Service Unavailable" in message
    assert len(site.asked("/net.safetensors")) == len(waits) + 1 == 5


def test_what_is_not_there_is_told(site):
    message = message_of(f"{site.url}/nothing#sha256={SHA256}", ReferenceNotFoundError)
    assert "404" in message and f"{site.url}/nothing" in message


@pytest.mark.parametrize("status", [401, 403, 418])
def test_a_refusal_is_told_without_secrets(site, status):
    reference = serve(site, answers=[Answer(status)])
    secret = reference.replace("://", f"://me:{TOKEN}@").replace("#", "?signature=1#")
    assert f"the answer {status}" in message_of(secret, DownloadError)


def test_no_connection_is_told(site, waits):
    site.close()
    message = message_of(f"{site.url}/net#sha256={SHA256}", DownloadError)
    assert "ConnectError" in message and "network" in message
    site.__init__()  # The fixture closes it once more.


def test_a_silent_server_is_not_waited_for_forever(site, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reference = f"http://127.0.0.1:{silent.getsockname()[1]}/net#sha256={SHA256}"
        assert "ReadTimeout" in message_of(reference, DownloadError)


def test_offline_without_the_file_is_told(site, offline):
    offline()
    assert "HF_HUB_OFFLINE" in message_of(serve(site), DownloadError)
    assert site.requests == []


def test_redirects_are_followed(site):
    reference = serve(site.cdn)
    site.files["/far"] = Served(b"", answers=[Answer(302, {"Location": "near"})])
    location = f"{site.cdn.url}/net.safetensors?signature=1"
    site.files["/near"] = Served(b"", answers=[Answer(307, {"Location": location})])
    path = hub.resolve(f"{site.url}/far#{reference.partition('#')[2]}")
    assert path.name == f"{SHA256}-far" and path.read_bytes() == CONTENT


@pytest.mark.parametrize("location", ["http://example.org/x", "ftp://127.0.0.1/x", "http://[1"])
def test_redirects_to_unprotected_places_are_not_followed(site, location):
    reference = serve(site, answers=[Answer(302, {"Location": location})])
    assert "redirect" in message_of(reference, DownloadError)


@pytest.mark.parametrize(
    ("url", "location", "allowed"),
    [
        ("https://a/x", "http://a/x", False),
        ("https://a/x", "http://127.0.0.1/x", False),
        ("https://a/x", "//b/x", True),
        ("http://127.0.0.1/x", "https://b/x", True),
        ("http://127.0.0.1/x", "http://b/x", False),
        # An endpoint of a company's own, which HF_ENDPOINT names.
        ("http://hub.internal/x", "http://cdn.internal/x", True),
    ],
)
def test_a_redirect_never_gives_up_protection(url, location, allowed):
    if allowed:
        assert download._redirect(url, location).endswith("/x")
    else:
        with pytest.raises(DownloadError, match="unprotected"):
            download._redirect(url, location)


def test_a_ring_of_redirects_ends(site):
    answers = [Answer(302, {"Location": "/net.safetensors"})] * 99
    assert "redirects" in message_of(serve(site, answers=answers), DownloadError)


def test_a_folder_without_room_is_told_before_the_download(site, monkeypatch):
    usage = namedtuple("usage", "total used free")(0, 0, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    message = message_of(serve(site), DownloadError)
    assert f"room for {len(CONTENT)} bytes" in message and "JAXTRANSFER_CACHE" in message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_disk_that_becomes_full_is_told(site):
    part = download.cache_folder() / f"{SHA256}-net.safetensors.part"
    part.parent.mkdir()
    part.symlink_to("/dev/full")
    message = message_of(serve(site), DownloadError)
    assert "No space left" in message and "JAXTRANSFER_CACHE" in message


def test_a_cache_that_is_no_folder_is_told(site, monkeypatch, tmp_path):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("JAXTRANSFER_CACHE", str(tmp_path / "taken"))
    assert str(tmp_path / "taken") in message_of(serve(site), DownloadError)


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("JAXTRANSFER_CACHE", "~/mine")
    assert download.cache_folder() == Path.home() / "mine"
    monkeypatch.setenv("JAXTRANSFER_CACHE", "~nobody-of-that-name/x")
    assert download.cache_folder() == Path("~nobody-of-that-name/x")
    monkeypatch.setenv("JAXTRANSFER_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert download.cache_folder() == Path("/x/jaxtransfer")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert download.cache_folder() == Path.home() / ".cache" / "jaxtransfer"


def test_threads_that_want_the_same_file_share_one_download(site):
    reference = serve(site, cuts=[1000, 1000])
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(hub.resolve(reference))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1 and found[0].read_bytes() == CONTENT
    assert len(site.asked("/net.safetensors")) == 3


@hypothesis.settings(
    max_examples=25, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(
    st.lists(st.integers(0, len(CONTENT)), max_size=8),
    st.lists(st.sampled_from([200, 206, 400, 416, 429, 503]), max_size=6),
    st.sampled_from(['"strong"', 'W/"weak"', ""]),
    st.booleans(),
)
def test_whatever_a_server_does_the_file_is_right_in_the_end(site, cuts, statuses, etag, ranges):
    shutil.rmtree(download.cache_folder(), ignore_errors=True)
    reference = serve(site)
    site.files["/net.safetensors"] = Served(bytes(10**5), '"old"', cuts=cuts[:4])
    for answers in ([], [Answer(status, body=b"?") for status in statuses]):
        with contextlib.suppress(DownloadError):
            assert hub.resolve(reference).read_bytes() == CONTENT
        serve(site, answers=answers, cuts=cuts[4:], etag=etag, ranges=ranges)
    with contextlib.suppress(DownloadError):
        assert hub.resolve(reference).read_bytes() == CONTENT
    serve(site, etag='"last"')
    assert hub.resolve(reference).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("https://example.org/a.npz", "no hash.*sha256sum"),
        ("https://example.org/a.npz#sha256=12", "#sha256=12"),
        ("https://example.org/a.npz#md5=12", "#md5=12"),
        (f"http://example.org/a.npz#sha256={SHA256}", "write https://"),
        (f"http://127.0.0.1.example.org/a#sha256={SHA256}", "write https://"),
        (f"https:///a.npz#sha256={SHA256}", "no such URL"),
        (f"https://example.org:port/a.npz#sha256={SHA256}", "no such URL"),
        (f"https://[1/a.npz#sha256={SHA256}", "no such URL"),
        (f"https://{'a' * 300}.org/a#sha256={SHA256}", "expected a URL"),
    ],
)
def test_urls_that_cannot_be_trusted_or_read_are_refused(reference, told, site):
    with pytest.raises(ReferenceNotFoundError, match=told):
        hub.resolve(reference)


def test_a_terminal_sees_a_bar_and_nothing_else_does(site, monkeypatch, capsys):
    hub.resolve(serve(site))
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    hub.resolve(serve(site, name="seen.npz"))
    out, shown = capsys.readouterr()
    assert out == "" and "seen.npz" in shown


# Repositories of the Hub


def test_a_named_file_comes_from_the_cache_of_the_hub(site, offline):
    site.repositories["org/net"] = Repository({"a/b.npz": b"weights", "c": b""})
    path = hub.resolve("hf://org/net/a/b.npz")
    assert path.read_bytes() == b"weights"
    assert path == Path(constants.HF_HUB_CACHE) / f"models--org--net/snapshots/{COMMIT}/a/b.npz"
    assert site.asked("/org/net/resolve/main/a/b.npz")[0]["authorization"] == f"Bearer {TOKEN}"
    offline()
    assert hub.resolve("hf://models/org/net/a/b.npz") == path


def test_the_cdn_gets_no_token(site):
    site.repositories["org/net"] = Repository(
        {"model.safetensors": CONTENT}, large=("model.safetensors",)
    )
    assert hub.resolve("hf://org/net").read_bytes() == CONTENT
    (asked,) = site.cdn.asked(f"/{SHA256}")
    assert "authorization" not in asked


def test_xet_storage_is_not_needed(site, monkeypatch):
    site.repositories["org/net"] = Repository({"x.npz": CONTENT}, large=("x.npz",), xet=True)
    if importlib.util.find_spec("hf_xet"):
        assert "HF_HUB_DISABLE_XET=1" in message_of("hf://org/net", DownloadError)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    assert hub.resolve("hf://org/net").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["a.npz", "model.safetensors", "pytorch_model.bin"], "model.safetensors"),
        (["model.safetensors", "model.fp16.safetensors", "x.npz"], "model.safetensors"),
        (["adapter_model.safetensors", "README.md"], "adapter_model.safetensors"),
        (["flax_model.msgpack", "pytorch_model.bin", "tf_model.h5"], "flax_model.msgpack"),
        (["x.npz", "pytorch_model.bin"], "x.npz"),
        (["pytorch_model.bin", "training_args.bin", "tf_model.h5"], "pytorch_model.bin"),
        (["last.ckpt", "optimizer.pt", "scheduler.pt", "rng_state.pth"], "last.ckpt"),
        (["a.keras", "model.onnx", "onnx/model.safetensors"], "a.keras"),
        (["b.onnx", "net.weights"], "b.onnx"),
        (["net.caffemodel", "net.weights"], "net.caffemodel"),
        (["net.weights", "glove.vec"], "net.weights"),
        (["glove.vec", "model.json"], "glove.vec"),
        (["model-00001-of-00001.safetensors"], "model-00001-of-00001.safetensors"),
        (["only.ckpt.index", "only.ckpt.data-00000-of-00001"], "only.ckpt.index"),
    ],
)
def test_the_best_file_is_chosen(site, files, chosen):
    site.repositories["org/net"] = Repository({name: name.encode() for name in files})
    assert hub.resolve("hf://org/net").read_text() == chosen


def test_several_files_of_the_best_kind_are_listed(site):
    files = ["b.safetensors", "a.safetensors", "x.npz", "c/model.safetensors"]
    site.repositories["org/net"] = Repository(dict.fromkeys(files, b""))
    message = message_of("hf://org/net", ReferenceNotFoundError)
    assert "hf://org/net/FILE: a.safetensors, b.safetensors" in message
    site.repositories["org/net"] = Repository(dict.fromkeys(SHARDS, b""))
    assert ", ".join(SHARDS) in message_of("hf://org/net", ReferenceNotFoundError)


def test_a_repository_without_weights_tells_what_it_has(site):
    site.repositories["org/net"] = Repository({f"unet/{i:02}.safetensors": b"" for i in range(30)})
    message = message_of("hf://org/net", ReferenceNotFoundError)
    assert "unet/00.safetensors, unet/01.safetensors" in message and message.endswith("10 more")
    site.repositories["org/net"] = Repository({})
    assert message_of("hf://org/net", ReferenceNotFoundError).endswith(": none")


@pytest.mark.parametrize("folder", ["", "sub/"])
def test_all_shards_of_an_index_come_to_lie_beside_it(site, offline, folder):
    files = {f"{folder}{name}": content for name, content in sharded().items()}
    site.repositories["org/net"] = Repository(files, large=tuple(files))
    file = f"/{folder}model.safetensors.index.json" if folder else ""
    path = hub.resolve(f"hf://org/net{file}")
    flat = read_weights(path)
    np.testing.assert_array_equal(flat["a"], WEIGHTS["a/kernel"])
    np.testing.assert_array_equal(flat["b"], WEIGHTS["b"])
    offline()
    assert hub.resolve(f"hf://org/net{file}") == path


def test_an_index_of_the_usual_name_goes_before_other_files(site):
    site.repositories["org/net"] = Repository({"consolidated.safetensors": b"", **sharded()})
    assert hub.resolve("hf://org/net").name == "model.safetensors.index.json"


def test_an_index_of_another_name_goes_before_its_shards(site):
    site.repositories["org/net"] = Repository(sharded("unusual"))
    assert hub.resolve("hf://org/net").name == "unusual.safetensors.index.json"


def test_shards_are_of_the_commit_of_their_index(site):
    site.repositories["org/net"] = Repository(sharded())
    hub.resolve("hf://org/net")
    name = next(iter(SHARDS))
    assert site.asked(f"/org/net/resolve/{COMMIT}/{name}")
    assert not site.asked(f"/org/net/resolve/main/{name}")


def test_a_missing_shard_is_told(site, offline):
    files = sharded()
    del files["model-00002-of-00002.safetensors"]
    site.repositories["org/net"] = Repository(files)
    message = message_of("hf://org/net", ReferenceNotFoundError)
    assert "model-00002-of-00002.safetensors" in message
    offline()
    assert "HF_HUB_OFFLINE" in message_of("hf://org/net", DownloadError)


@pytest.mark.parametrize(
    "index",
    [b"", b"{}", b"[]", b'{"weight_map": 1}', b'{"weight_map": {"a": 1}}']
    + [json.dumps({"weight_map": {"a": name}}).encode() for name in ("../x", "/x", "", "a/../x")],
)
def test_an_index_that_cannot_be_is_damaged(site, index):
    site.repositories["org/net"] = Repository({"model.safetensors.index.json": index})
    with pytest.raises(FormatError, match="index of shards"):
        hub.resolve("hf://org/net")


@pytest.mark.parametrize(
    ("files", "beside"),
    [
        (["net.weights", "net.cfg", "config.json", "x.txt"], ["config.json", "net.cfg"]),
        (["net.caffemodel", "deploy.prototxt", "x.cfg"], ["deploy.prototxt"]),
        (["m.onnx", "m.onnx_data", "m.onnx.data", "n.onnx_data"], ["m.onnx.data", "m.onnx_data"]),
        (["m.ckpt.index", "m.ckpt.data-0-of-1", "n.data-0-of-1"], ["m.ckpt.data-0-of-1"]),
        (["model.safetensors", "config.json", "a.cfg", "sub/config.json"], ["config.json"]),
        (["model.safetensors", "receipt.json", "config.json"], ["config.json", "receipt.json"]),
    ],
)
def test_what_weights_are_read_with_comes_to_lie_beside_them(site, files, beside):
    site.repositories["org/net"] = Repository(dict.fromkeys(files, b"{}"))
    path = hub.resolve("hf://org/net")
    assert sorted(other.name for other in path.parent.iterdir() if other != path) == beside


@pytest.mark.parametrize(
    ("written", "revision"),
    [
        ("v1.0", "v1.0"),
        ("refs/pr/12", "refs/pr/12"),
        ("refs/convert/parquet-v2", "refs/convert/parquet-v2"),
        ("feature%2Fx", "feature/x"),
        ("d" * 40, "d" * 40),
    ],
)
def test_a_revision_may_be_named(site, offline, written, revision):
    commit = revision if len(revision) == 40 else "d" * 40
    site.repositories["org/net"] = Repository({"x.npz": b""}, {"main": COMMIT, revision: commit})
    path = hub.resolve(f"hf://org/net@{written}")
    assert path.parent.name == commit
    offline()
    assert hub.resolve(f"hf://org/net@{written}/x.npz") == path


@pytest.mark.parametrize(
    "reference",
    ["hf://", "hf://net", "hf:///net", "hf://org/", "hf://org/net/", "hf://org/net@", "hf://a b/c"]
    + ["hf://datasets/org/net", "hf://org/net@../x", "hf://org/net@a%2F..%2Fb", "hf://org/net?x"],
)
def test_what_is_no_reference_to_a_repository_is_told_how_to_write_one(site, reference):
    assert "hf://ORG/NAME[@REVISION]" in message_of(reference, ReferenceNotFoundError)
    assert site.requests == []


def test_a_name_that_cannot_be_a_repositorys_is_no_repository(site):
    assert "check the spelling" in message_of("hf://org/a--b", ReferenceNotFoundError)


def test_a_repository_that_is_not_there_is_told(site):
    message = message_of("hf://org/nat", ReferenceNotFoundError)
    assert "org/nat" in message and "HF_TOKEN" in message and site.url in message


def test_a_revision_that_is_not_there_is_told(site):
    site.repositories["org/net"] = Repository({"x.npz": b""})
    assert "a commit v2," in message_of("hf://org/net@v2", ReferenceNotFoundError)


def test_a_file_that_is_not_there_is_told_with_the_nearest(site):
    site.repositories["org/net"] = Repository({"sub/model.npz": b"", "README.md": b""})
    message = message_of("hf://org/net/sub/modle.npz", ReferenceNotFoundError)
    assert "the nearest are: sub/model.npz" in message


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_is_told_with_what_to_do(site, status):
    site.repositories["org/net"] = Repository({}, unlisted=refusal(status, "GatedRepo"))
    message = message_of("hf://org/net", DownloadError)
    assert f"{site.url}/org/net" in message and "HF_TOKEN" in message


def test_files_may_be_gated_where_their_names_are_not(site):
    gated = Repository({"x.npz": b""}, gated=True)
    site.repositories["org/net"] = gated
    assert "accept the conditions" in message_of("hf://org/net/x.npz", DownloadError)
    assert "accept the conditions" in message_of("hf://org/net", DownloadError)


@pytest.mark.parametrize(
    ("status", "remedy"), [(403, "token"), (429, "set HF_TOKEN"), (503, "try again")]
)
def test_other_refusals_are_told_once_and_short(site, status, remedy):
    answer = Answer(status, {"X-Error-Message": f"no, {TOKEN}", "Retry-After": "1"})
    site.repositories["org/net"] = Repository({}, unlisted=answer)
    message = message_of("hf://org/net", DownloadError)
    assert f"the answer {status} (no, …)" in message and remedy in message


def test_a_server_that_fails_after_the_list_is_told(site):
    site.repositories["org/net"] = Repository({"x.npz": b""})
    site.files["/org/net/resolve/main/x.npz"] = Served(b"", answers=[Answer(503)] * 99)
    assert "the answer 503" in message_of("hf://org/net", DownloadError)


def test_a_page_instead_of_the_hub_is_told(site):
    site.repositories["org/net"] = Repository({}, unlisted=Answer(200, {}, b"<html>Log in!"))
    assert site.url in message_of("hf://org/net", DownloadError)


def test_without_a_connection_the_cache_serves(site, monkeypatch):
    site.repositories["org/net"] = Repository({"config.json": b"", **sharded()})
    path = hub.resolve("hf://org/net")
    site.repositories["org/net"].unlisted = Answer(503)
    assert hub.resolve("hf://org/net") == path
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        "http://127.0.0.1:1/{repo_id}/resolve/{revision}/{filename}",
    )
    assert hub.resolve("hf://org/net") == path
    message = message_of("hf://org/other", DownloadError)
    assert "ConnectError" in message and "network" in message


def test_a_repository_that_was_taken_away_is_still_in_the_cache(site):
    site.repositories["org/net"] = Repository({"x.npz": b""})
    path = hub.resolve("hf://org/net")
    del site.repositories["org/net"]
    assert hub.resolve("hf://org/net") == path


def test_the_right_repository_and_revision_are_found_in_the_cache(site, offline):
    site.repositories["org/a"] = Repository({"a.npz": b""})
    site.repositories["org/b"] = Repository({"old.npz": b""}, {"main": "b" * 40, "v1": "b" * 40})
    hub.resolve("hf://org/b@v1")
    site.repositories["org/b"] = Repository({"new.npz": b""}, {"main": "d" * 40})
    names = {"hf://org/a": "a.npz", "hf://org/b": "new.npz", "hf://org/b@v1": "old.npz"}
    for reference in ("hf://org/a", "hf://org/b"):
        hub.resolve(reference)
    offline()
    assert {reference: hub.resolve(reference).name for reference in names} == names
    message_of("hf://org/b@v2", DownloadError)


def test_offline_without_a_cache_is_told(site, offline):
    offline()
    assert "HF_HUB_OFFLINE" in message_of("hf://org/net", DownloadError)
    assert site.requests == []


def test_a_cut_connection_to_the_cdn_harms_nothing(site):
    site.repositories["org/net"] = Repository(
        {"model.safetensors": CONTENT}, large=("model.safetensors",)
    )
    site.cdn.files[f"/{SHA256}"] = Served(CONTENT, cuts=[1000])
    with contextlib.suppress(DownloadError):  # huggingface_hub 1 leaves it to us to try again.
        assert hub.resolve("hf://org/net").read_bytes() == CONTENT
    assert hub.resolve("hf://org/net").read_bytes() == CONTENT


def test_a_disk_without_room_for_the_cache_of_the_hub_is_told(site, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    site.repositories["org/net"] = Repository({"x.npz": b""})
    monkeypatch.setattr("huggingface_hub.file_download.http_get", fail)
    message = message_of("hf://org/net", DownloadError)
    assert "No space left" in message and "HF_HUB_CACHE" in message


# Headers before a download


def hub_inspections(site: Site) -> tuple[str, str]:
    """References to the same weights in a repository and at a URL."""
    site.repositories["org/net"] = Repository(
        {"model.safetensors": CONTENT}, large=("model.safetensors",)
    )
    return "hf://org/net", serve(site)


@pytest.mark.parametrize("place", [0, 1])
def test_a_header_is_inspected_without_a_download(site, tmp_path, place):
    reference = hub_inspections(site)[place]
    (tmp_path / "x").write_bytes(CONTENT)
    local = inspect_weights(tmp_path / "x")
    found = hub.inspect_remote(reference)
    assert found is not None
    assert (found.tensors, found.metadata, found.format) == (
        local.tensors,
        local.metadata,
        "safetensors",
    )
    assert found.path == Path("net.safetensors" if place else "model.safetensors")
    ranges = [headers.get("range") for s in (site, site.cdn) for *_, headers in s.requests]
    assert set(ranges) <= {None, "bytes=0-65535"}
    assert not any("authorization" in headers for *_, headers in site.cdn.requests)
    authorized = ["authorization" in headers for *_, headers in site.requests]
    assert authorized == ([False] if place else [True, True])
    assert not download.cache_folder().exists() and not Path(constants.HF_HUB_CACHE).exists()


def test_a_long_header_is_fetched_to_its_end(site):
    flat = {f"block/{number}/kernel": np.zeros(2, np.float32) for number in range(2000)}
    site.files["/long"] = Served(content := save(flat))
    found = hub.inspect_remote(f"{site.url}/long#sha256={'0' * 64}")
    assert found is not None and len(found.tensors) == 2000
    header = 8 + int.from_bytes(content[:8], "little")
    asked = [headers["range"] for headers in site.asked("/long")]
    assert asked == ["bytes=0-65535", f"bytes=65536-{header - 1}"]
    assert {headers["accept-encoding"] for headers in site.asked("/long")} == {"identity"}


@pytest.mark.parametrize("folder", ["", "sub/"])
def test_the_headers_of_all_shards_are_inspected(site, folder):
    files = {f"{folder}{name}": content for name, content in sharded().items()}
    large = tuple(f"{folder}{name}" for name in SHARDS)
    site.repositories["org/net"] = Repository(files, large=large)
    index = f"{folder}model.safetensors.index.json"
    found = hub.inspect_remote(f"hf://org/net/{index}")
    assert found is not None and found.path == Path(index)
    assert [(tensor.name, tensor.shape) for tensor in found.tensors] == [
        ("a", (50_000,)),
        ("b", (2, 3)),
    ]
    assert {headers["range"] for *_, headers in site.cdn.requests} == {"bytes=0-65535"}


@pytest.mark.parametrize(
    "reference",
    [
        "checkpoints/glyphs",
        "nothing",
        Path("x"),
        "hf://org/torch",
        "hf://org/gated",
        "hf://org/503",
    ],
)
def test_where_no_header_can_be_read_the_answer_is_none(site, reference):
    site.repositories["org/torch"] = Repository({"pytorch_model.bin": b"PK..." * 1000})
    site.repositories["org/gated"] = Repository({"model.safetensors": CONTENT}, gated=True)
    site.repositories["org/503"] = Repository({}, unlisted=Answer(503))
    assert hub.inspect_remote(reference) is None


@pytest.mark.parametrize(
    "options",
    [
        {"ranges": False},
        {"answers": [Answer(403)]},
        {"answers": [Answer(503)] * 9},
        {"answers": [Answer(206, {"Content-Range": "bytes 5-9/*"}, b"12345")]},
        {"answers": [Answer(206, {"Content-Range": f"bytes 5-9/{len(CONTENT)}"}, CONTENT[:500])]},
        {"answers": [Answer(206, {"Content-Range": f"bytes 0-9/{'9' * 5000}"}, CONTENT)]},
    ],
)
def test_where_a_server_gives_no_parts_the_answer_is_none(site, options):
    assert hub.inspect_remote(serve(site, **options)) is None
    assert hub.resolve(serve(site)).read_bytes() == CONTENT


def test_no_more_is_asked_for_than_the_longest_valid_header(site, monkeypatch):
    asked: list[int] = []

    def read_range(url, start, stop, headers):
        asked.append(stop)
        return None if start else ((2**62).to_bytes(8, "little") + b"{", 10**15)

    monkeypatch.setattr(hub, "read_range", read_range)
    assert hub.inspect_remote(serve(site)) is None
    assert asked == [2**16, 8 + 100_000_000]


def test_where_no_file_can_be_so_large_the_answer_is_none(site, monkeypatch):
    def fail(path, size):
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(os, "truncate", fail)
    assert hub.inspect_remote(serve(site)) is None


def test_no_more_is_read_than_was_asked_for(monkeypatch):
    def endless():
        yield from [b"x" * 7, b"x" * 7]
        pytest.fail("read on")

    answer = types.SimpleNamespace(
        status_code=206,
        headers={"Content-Range": "bytes 0-9/100"},
        has_redirect_location=False,
        iter_raw=endless,
        close=lambda: None,
    )
    monkeypatch.setattr(download, "_send", lambda url, headers: answer)
    assert download.read_range("https://example.org/x", 0, 10, {}) == (b"x" * 10, 100)


def test_offline_there_is_nothing_to_inspect(site, offline):
    offline()
    assert hub.inspect_remote(serve(site)) is None
    assert hub.inspect_remote("hf://org/net") is None


@pytest.mark.parametrize("reference", ["hf://org/nat", "hf://org/net@v2", "http://example.org/x"])
def test_what_is_not_there_cannot_be_inspected(site, reference):
    hub_inspections(site)
    with pytest.raises(ReferenceNotFoundError):
        hub.inspect_remote(reference)
    with pytest.raises(ReferenceNotFoundError):
        hub.inspect_remote(f"{site.url}/nothing#sha256={SHA256}")


@pytest.mark.parametrize(
    "content",
    [
        CONTENT[:-1],
        CONTENT + b"!",
        CONTENT[:20],
        (2**62).to_bytes(8, "little") + CONTENT[8:],
        (10**8 + 1).to_bytes(8, "little") + b"{" + bytes(10),
        CONTENT[:8] + b"{" + bytes(40_000),
    ],
)
def test_a_damaged_header_is_told_with_the_reference(site, content):
    site.files["/net"] = Served(content)
    reference = f"{site.url}/net#sha256={'0' * 64}"
    with pytest.raises(FormatError, match=f"^{site.url}/net: net: expected .* byte") as caught:
        hub.inspect_remote(reference)
    assert "/tmp" not in str(caught.value)


# In processes of their own


def test_processes_share_the_caches_and_obey_the_environment(site, tmp_path):
    """Variables of huggingface_hub are read when it is imported, so this needs new processes."""
    site.repositories["org/net"] = Repository(sharded())
    reference = serve(site, cuts=[1000, 1000])
    program = (
        "import sys, jaxtransfer\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        "from jaxtransfer import hub\n"
        "print(*(hub.resolve(reference) for reference in sys.argv[1:]))\n"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": site.url,
        "HF_HOME": str(tmp_path / "home"),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(hub.__file__).parent.parent),
    }
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"):
        environment.pop(name, None)
    command = [sys.executable, "-W", "error", "-c", program, reference, "hf://org/net"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0], results
    assert results[0] == results[1] and results[0][1] == ""
    file, index = map(Path, results[0][0].split())
    assert file.read_bytes() == CONTENT and len(site.asked("/net.safetensors")) == 3
    assert index.is_relative_to(tmp_path / "home" / "hub") and set(read_weights(index)) == {
        "a",
        "b",
    }
