from __future__ import annotations

from pathlib import Path

import pytest

from jaxtransfer import hub
from jaxtransfer.errors import ReferenceNotFoundError


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
