from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from jaxtransfer.errors import FormatError, ReferenceNotFoundError
from jaxtransfer.formats.darknet import inspect, matches, read, read_cfg

NET = "[net]\nheight=9\nwidth=7\nchannels=6\n"
NEW = struct.pack("<3iq", 0, 2, 5, 12_800)
OLD = struct.pack("<3ii", 0, 1, 0, 640)
OLDEST = struct.pack("<3fi", 0.01, 0.9, 0.0005, 64)

YOLO = "weights/yolo_fastest_darknet/yolo-fastest-1.1.weights"

SMALL = """
[convolutional]
filters=4
size=3
pad=1
batch_normalize=1

[maxpool]
size=2
stride=2

[connected]
output=5
"""
SMALL_VALUES = 4 * 4 + 4 * 6 * 9 + 5 + 5 * (4 * 5 * 4)


def written(folder: Path, sections: str, values: int, header: bytes = NEW, name: str = "a.weights"):
    """Weights 1, 2, 3, … beside their description, so that each value tells its place."""
    (folder / "a.cfg").write_text(NET + sections)
    path = folder / name
    path.write_bytes(header + np.arange(1, values + 1, dtype="<f4").tobytes())
    return path


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    flat = read(path)
    # The arrays follow each other in the file, and all of it is theirs.
    starts = [array.min() for array in flat.values()]
    assert starts == sorted(starts)
    assert sum(array.size for array in flat.values()) == max(a.max() for a in flat.values())
    tensors = inspect(path).tensors
    assert [(tensor.name, tensor.shape) for tensor in tensors] == [
        (name, array.shape) for name, array in flat.items()
    ]
    assert all(tensor.bytes == flat[tensor.name].nbytes for tensor in tensors)
    return {name: array.shape for name, array in flat.items()}


KINDS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "convolution with groups": (
        "[convolutional]\nfilters=4\ngroups=2\nsize=3\n",
        {"0/biases": (4,), "0/weights": (4, 3, 3, 3)},
    ),
    "batch normalisation": (
        "[conv]\nfilters=2\nbatch_normalize=1\n",
        {
            "0/biases": (2,),
            "0/scales": (2,),
            "0/rolling_mean": (2,),
            "0/rolling_variance": (2,),
            "0/weights": (2, 6, 1, 1),
        },
    ),
    "scales that are not in the file": (
        "[convolutional]\nfilters=2\nbatch_normalize=1\ndontloadscales=1\n",
        {"0/biases": (2,), "0/weights": (2, 6, 1, 1)},
    ),
    "a layer that is not in the file": (
        "[convolutional]\nfilters=2\ndontload=1\n[convolutional]\nfilters=3\n",
        {"1/biases": (3,), "1/weights": (3, 2, 1, 1)},
    ),
    "the weights of another layer": (
        "[convolutional]\nfilters=6\n[convolutional]\nfilters=6\nshare_index=-1\n",
        {"0/biases": (6,), "0/weights": (6, 6, 1, 1)},
    ),
    "a dense layer, its statistics last": (
        "[connected]\noutput=2\nbatch_normalize=1\n",
        {
            "0/biases": (2,),
            "0/weights": (2, 6 * 9 * 7),
            "0/scales": (2,),
            "0/rolling_mean": (2,),
            "0/rolling_variance": (2,),
        },
    ),
    "sizes with stride, padding and pooling": (
        "[convolutional]\nfilters=2\nsize=3\nstride=2\npad=1\n"  # 5 x 4
        "[maxpool]\nsize=2\nstride=2\n"  # 3 x 2
        "[conn]\noutput=1\n",
        {"0/biases": (2,), "0/weights": (2, 6, 3, 3), "2/biases": (1,), "2/weights": (1, 12)},
    ),
    "strides that differ": (
        "[convolutional]\nfilters=1\nstride_x=2\nstride_y=3\n[conn]\noutput=1\n",  # 3 x 4
        {"0/biases": (1,), "0/weights": (1, 6, 1, 1), "1/biases": (1,), "1/weights": (1, 12)},
    ),
    "padding by half the window": (
        "[convolutional]\nfilters=1\nsize=5\npad=1\n"
        "[convolutional]\nfilters=1\npadding=1\n"  # 11 x 9
        "[conn]\noutput=2\n[conn]\noutput=1\n",
        {
            "0/biases": (1,),
            "0/weights": (1, 6, 5, 5),
            "1/biases": (1,),
            "1/weights": (1, 1, 1, 1),
            "2/biases": (2,),
            "2/weights": (2, 99),
            "3/biases": (1,),
            "3/weights": (1, 2),
        },
    ),
    "pooling over the whole image": (
        "[avgpool]\n[connected]\noutput=3\n",
        {"1/biases": (3,), "1/weights": (3, 6)},
    ),
    "pooling over channels": (
        "[maxpool]\nmaxpool_depth=1\nout_channels=2\n[conn]\noutput=1\n",
        {"1/biases": (1,), "1/weights": (1, 2 * 9 * 7)},
    ),
    "a layer of its own for each place": (
        "[local]\nfilters=2\nsize=3\nstride=3\npad=1\n",  # 3 x 3
        {"0/biases": (2, 3, 3), "0/weights": (3, 3, 2, 6, 3, 3)},
    ),
    "such a layer without padding": (
        "[local]\nfilters=1\nsize=3\nstride=2\n",  # 4 x 3
        {"0/biases": (1, 4, 3), "0/weights": (4, 3, 1, 6, 3, 3)},
    ),
    "joined layers": (
        "[dropout]\n[convolutional]\nfilters=3\n[route]\nlayers = -1, 0\n[conv]\nfilters=1\n",
        {"1/biases": (3,), "1/weights": (3, 6, 1, 1), "3/biases": (1,), "3/weights": (1, 9, 1, 1)},
    ),
    "a group of channels": (
        "[dropout]\n[route]\nlayers=-1\ngroups=2\ngroup_id=1\n[conv]\nfilters=1\n",
        {"2/biases": (1,), "2/weights": (1, 3, 1, 1)},
    ),
    "sums with weights": (
        "[dropout]\n[dropout]\n[shortcut]\nfrom=-2,-1\nweights_type=per_feature\n"
        "[shortcut]\nfrom=0\nweights_type=per_channel\n[shortcut]\nfrom=0\n",
        {"2/weights": (3,), "3/weights": (2, 6)},
    ),
    "values that are learned": (
        "[implicit]\nfilters=4\natoms=3\n[conn]\noutput=1\n",
        {"0/weights": (4, 3), "1/biases": (1,), "1/weights": (1, 12)},
    ),
    "channels that are scaled by a squeezed copy": (
        "[dropout]\n[avgpool]\n[scale_channels]\nfrom=0\n[conn]\noutput=1\n",
        {"3/biases": (1,), "3/weights": (1, 6 * 9 * 7)},
    ),
    "a larger image": (
        "[upsample]\nstride=2\n[conn]\noutput=1\n",
        {"1/biases": (1,), "1/weights": (1, 6 * 18 * 14)},
    ),
    "a smaller image": (
        "[upsample]\nstride=-3\n[conn]\noutput=1\n",  # 3 x 2
        {"1/biases": (1,), "1/weights": (1, 36)},
    ),
    "an image cut into channels": (
        "[crop]\ncrop_height=8\ncrop_width=4\n[reorg]\nstride=2\n[conv]\nfilters=1\n",
        {"2/biases": (1,), "2/weights": (1, 24, 1, 1)},
    ),
    "channels put together to an image": (
        "[conv]\nfilters=4\n[reorg]\nstride=2\nreverse=1\n[conn]\noutput=1\n",
        {"0/biases": (4,), "0/weights": (4, 6, 1, 1), "2/biases": (1,), "2/weights": (1, 252)},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_layer_has_its_arrays(tmp_path, kind):
    sections, expected = KINDS[kind]
    values = sum(int(np.prod(shape)) for shape in expected.values())
    assert shapes_of(written(tmp_path, sections, values)) == expected


@pytest.mark.parametrize("fields", [4, 3])
def test_batchnorm_layers_have_biases_in_some_versions_which_the_size_tells(tmp_path, fields):
    path = written(tmp_path, "[batchnorm]\n[conv]\nfilters=1\n", fields * 6 + 7)
    names = ["biases", "scales", "rolling_mean", "rolling_variance"][-fields:]
    assert list(read(path)) == [*(f"0/{name}" for name in names), "1/biases", "1/weights"]


def test_values_stand_as_the_file_has_them_and_are_not_copied(tmp_path):
    flat = read(written(tmp_path, SMALL, SMALL_VALUES))
    np.testing.assert_array_equal(flat["0/rolling_mean"], [9, 10, 11, 12])
    weights = flat["0/weights"]
    assert weights[0, 0, 0].tolist() == [17, 18, 19] and weights[3, 5, 2, 2] == 16 + weights.size
    assert flat["2/weights"][1, 0] - flat["2/weights"][0, 0] == 4 * 5 * 4
    assert all(not array.flags.owndata and not array.flags.writeable for array in flat.values())
    assert all(array.dtype == np.float32 for array in flat.values())


def test_dense_weights_of_the_first_versions_are_turned_to_outputs_first(tmp_path):
    path = written(tmp_path, SMALL, SMALL_VALUES, OLDEST)
    flat, inspection = read(path), inspect(path)
    assert flat["2/weights"].shape == (5, 80)
    assert flat["2/weights"][1, 0] - flat["2/weights"][0, 0] == 1
    assert not flat["2/weights"].flags.owndata
    assert inspection.metadata["transposed"] == "2/weights"
    assert inspection.metadata["momentum"] == "0.9"
    assert inspection.metadata["seen"] == "64"


def test_flipped_convolutions_are_turned_to_outputs_first(tmp_path):
    path = written(tmp_path, "[conv]\nfilters=4\nsize=2\nflipped=1\n", 4 + 4 * 24)
    weights = read(path)["0/weights"]
    assert weights.shape == (4, 6, 2, 2) and not weights.flags.owndata
    assert weights[:, 0, 0, 0].tolist() == [5, 6, 7, 8] and weights[0, 0, 0, 1] == 9
    assert inspect(path).metadata["transposed"] == "0/weights"


@pytest.mark.parametrize(
    ("header", "version", "seen"), [(NEW, "0.2.5", "12800"), (OLD, "0.1.0", "640")]
)
def test_headers_of_both_lengths(tmp_path, header, version, seen):
    path = written(tmp_path, SMALL, SMALL_VALUES, header)
    assert read(path)["0/biases"].tolist() == [1, 2, 3, 4]
    metadata = inspect(path).metadata
    assert metadata["version"] == version and metadata["seen"] == seen
    assert metadata["layers"] == "convolutional maxpool connected"
    assert metadata["architecture"] == "a.cfg"
    assert "transposed" not in metadata


def test_a_network_may_have_plain_inputs(tmp_path):
    (tmp_path / "a.cfg").write_text("[net]\ninputs=3\n[connected]\noutput=2\n")
    (tmp_path / "a.weights").write_bytes(NEW + bytes(4 * 8))
    assert read(tmp_path / "a.weights")["0/weights"].shape == (2, 3)


def test_a_cfg_is_read_as_darknet_reads_it(tmp_path):
    path = tmp_path / "a.cfg"
    path.write_bytes(
        b"# a comment\r\n[network]\r\n height = 8 \r\n;another\n\n[conv]\nfilters=4 # four\n"
        b"filters=5\nlayers=-1, -4 # two\nname=\xff\n"
    )
    net, layer = read_cfg(path)
    assert (net.kind, layer.kind) == ("net", "convolutional")
    assert net.number("height", 1) == 8 and net.number("width", 1) == 1
    assert layer.number("filters", 1) == 4
    assert layer.numbers("layers") == [-1, -4]
    assert layer.offset == path.read_bytes().index(b"[conv]")


def test_a_cfg_can_be_given(tmp_path):
    path = written(tmp_path, SMALL, SMALL_VALUES)
    (tmp_path / "a.cfg").rename(tmp_path / "other.cfg")
    with pytest.raises(FormatError, match=r"no a\.cfg; put it there, or give .* `architecture`"):
        read(path)
    assert len(read(path, tmp_path / "other.cfg")) == 7
    assert inspect(path, tmp_path / "other.cfg").metadata["architecture"] == "other.cfg"
    with pytest.raises(ReferenceNotFoundError, match=r"absent\.cfg"):
        read(path, tmp_path / "absent.cfg")


def test_a_cfg_outside_of_the_folder_is_not_followed(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    path = written(tmp_path, SMALL, SMALL_VALUES).rename(inside / "a.weights")
    (inside / "a.cfg").symlink_to(tmp_path / "a.cfg")
    with pytest.raises(FormatError, match="leads out of the folder"):
        read(path)


def test_a_backbone_says_in_its_name_how_many_layers_it_has(tmp_path):
    values = 16 + 4 * 6 * 9
    path = written(tmp_path, SMALL, values, name="a.conv.2")
    assert inspect(path).metadata["layers"] == "convolutional maxpool"
    assert len(read(path)) == 5
    whole = path.rename(tmp_path / "a.weights")
    with pytest.raises(
        FormatError, match=r"end of layer 0, as in a backbone .* name it a\.conv\.1"
    ):
        read(whole)
    with pytest.raises(FormatError, match="3 layers, where the name of .* says 4"):
        read(written(tmp_path, SMALL, values, name="a.conv.4"))


def test_layers_behind_a_backbone_need_not_be_known(tmp_path):
    assert len(read(written(tmp_path, "[conv]\n[gru]\n", 7, name="a.conv.1"))) == 2


@pytest.mark.parametrize(
    ("surplus", "message"),
    [
        (1, r"4 of them after the last layer, at byte \d+;"),
        (-1, r"end in layer 2 \[connected\], at byte \d+;"),
        (-405, r"at byte \d+ the end of layer 0, as in a backbone of the first 1 layers"),
        (-406, r"end in layer 0 \[convolutional\], at byte \d+;"),
        (-SMALL_VALUES, r"end in layer 0"),
    ],
)
def test_weights_that_end_elsewhere_than_the_layers(tmp_path, surplus, message):
    path = written(tmp_path, SMALL, SMALL_VALUES + surplus)
    for function in (read, inspect):
        with pytest.raises(FormatError, match=rf"a\.weights: expected the \d+ bytes .*{message}"):
            function(path)


def test_every_truncation_is_a_format_error(tmp_path):
    path = written(tmp_path, SMALL, SMALL_VALUES)
    content = path.read_bytes()
    for length in [*range(40), *range(40, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(FormatError, match=r"a\.weights"):
            read(path)


def test_layers_that_cannot_be_read_are_all_named(tmp_path):
    path = written(tmp_path, "[conv]\n[gru]\n[lstm]\n[conv]\nantialiasing=1\n", 100)
    with pytest.raises(FormatError, match=r"a\.cfg") as caught:
        read(path)
    for line in (r"layer 1 [gru]", r"layer 2 [lstm]", r"layer 3 [convolutional] antialiasing"):
        assert f" ! {line}, at byte " in str(caught.value)


BAD: dict[str, tuple[str, str]] = {
    "nothing": ("", "no section [net]"),
    "no [net]": ("[conv]\n", "no section [net]"),
    "an option before all": ("a=1\n" + NET, "the line 'a=1'"),
    "no option": (NET + "[conv]\nfilters\n", "the line 'filters'"),
    "no number": (NET + "[conv]\nfilters=many\n", "filters=many in a section [convolutional]"),
    "a huge number": (NET + "[conv]\nfilters=2147483648\n", "filters=2147483648"),
    "a long number": (NET + "[conv]\nfilters=" + "9" * 9999, "filters=99999999999999999999 in"),
    "no input": ("[net]\n[conv]\n", "the input with the shape (0, 1, 1)"),
    "no filters": (NET + "[conv]\nfilters=0\n", "layer 0 [convolutional] with the shape (0, 9, 7)"),
    "negative filters": (NET + "[conv]\nfilters=-3\n", "with the shape (-3, 9, 7)"),
    "negative size": (NET + "[conv]\nsize=-3\n", "weights of layer 0 [convolutional]"),
    "no stride": (NET + "[maxpool]\nstride=0\n", "with strides of (0, 0)"),
    "a stride of the wrong sign": (NET + "[reorg]\nstride=-2\n", "with a stride of -2"),
    "groups that do not divide": (NET + "[conv]\ngroups=4\n", "6 channels in 4 groups"),
    "no groups": (NET + "[dropout]\n[route]\nlayers=0\ngroups=0\n", "6 channels in 0 groups"),
    "a window larger than the image": (NET + "[conv]\nsize=20\n", "the shape (1, -10, -12)"),
    "itself": (NET + "[route]\nlayers=0\n", "layers=0 in layer 0"),
    "before the first": (NET + "[dropout]\n[shortcut]\nfrom=-2\n", "from=-2 in layer 1"),
    "no source": (NET + "[dropout]\n[route]\n", "without 'layers'"),
    "sources of other sizes": (
        NET + "[dropout]\n[upsample]\n[route]\nlayers=-1,-2\n",
        "heights and widths of [(9, 7), (18, 14)]",
    ),
    "weights of no known kind": (
        NET + "[dropout]\n[shortcut]\nfrom=0\nweights_type=some\n",
        "weights_type=some",
    ),
    "growth without end": (NET + "[upsample]\nstride=9999\n" * 9, "layer 2 [upsample] with"),
    "another kind of file": ("\0" * 100, "the line '"),
    "a huge file": ("#" * 2**19, "more than 262144 bytes"),
}


@pytest.mark.parametrize(("cfg", "found"), BAD.values(), ids=BAD)
def test_a_cfg_that_cannot_be_is_a_format_error_that_names_it(tmp_path, cfg, found):
    path = written(tmp_path, SMALL, SMALL_VALUES)
    (tmp_path / "a.cfg").write_text(cfg)
    for function in (read, inspect):
        with pytest.raises(
            FormatError, match=rf"a\.cfg: expected .*found at byte \d+: .*{re.escape(found)}"
        ):
            function(path)


def test_nothing_there_and_a_folder_there(tmp_path):
    with pytest.raises(ReferenceNotFoundError, match="absent"):
        read(tmp_path / "absent.weights")
    with pytest.raises(FormatError):
        read(tmp_path)
    assert not matches(b"", tmp_path)
    assert not matches(NEW + bytes(100), tmp_path / "absent.weights")


def test_files_that_look_like_it_are_told_from_others(tmp_path):
    generator = np.random.default_rng(0)
    values = generator.normal(size=300).astype("<f4").tobytes()
    path = tmp_path / "a"

    def is_claimed(content: bytes) -> bool:
        path.write_bytes(content)
        return matches(content[:1024], path)

    assert all(is_claimed(header + values) for header in (NEW, OLD, OLDEST))
    others = {
        "half a value more": NEW + values + b"12",
        "no values": NEW,
        "zeros": bytes(400),
        "noise": generator.bytes(4000),
        "float32": values,
        "positive float32": np.abs(generator.normal(size=300) / 9).astype("<f4").tobytes(),
        "float64": generator.normal(size=300).tobytes(),
        "integers": np.arange(400, dtype="<i4").tobytes(),
        "small integers": generator.integers(0, 3, 400).astype("<i4").tobytes(),
        "a version and noise": NEW + generator.bytes(4000),
        "a version and integers": NEW + np.arange(400, dtype="<i4").tobytes(),
        "an unknown version": struct.pack("<3iq", 7, 200, 0, 1) + values,
        "images from nowhere": struct.pack("<3iq", 0, 2, 0, -1) + values,
        "digits": b"0.280.390.49000\n" + values,
    }
    assert [name for name, content in others.items() if is_claimed(content)] == []


def test_real_weights(real_data):
    path = real_data / YOLO
    if not path.exists():
        pytest.skip(f"no {path.name} in {real_data}")
    assert matches(path.read_bytes()[:1024], path)
    flat, inspection = read(path), inspect(path)
    assert inspection.metadata["version"] == "0.2.5"
    assert inspection.metadata["seen"] == "14231680"
    assert len(flat) == 414 and inspection.parameters == 346_062
    assert 20 + 4 * 346_062 == path.stat().st_size
    # The same over the blobs of OpenCV's cv2.dnn.readNetFromDarknet (4.14), layer by layer.
    digest = hashlib.sha256()
    for name in sorted(flat, key=lambda name: (int(name.partition("/")[0]), name)):
        digest.update(f"{name} {flat[name].shape}".encode())
        digest.update(flat[name].tobytes())
    assert digest.hexdigest() == "9625d594d6289ef35b35095d573e1472acd5aa2b8bb969575cadb3fd8f6d44de"


def test_no_other_real_file_is_claimed(real_data):
    others = [path for path in real_data.rglob("*") if path.is_file()]
    claimed = []
    for path in others:
        with open(path, "rb") as file:
            if matches(file.read(1024), path):
                claimed.append(path)
    assert claimed in ([], [real_data / YOLO])
