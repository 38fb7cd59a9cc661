from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest

from jaxtransfer.errors import FormatError, ReferenceNotFoundError
from jaxtransfer.formats import keras, npz
from jaxtransfer.formats.keras import inspect, matches, read

FIXTURES = Path(__file__).parent / "fixtures" / "keras"
TINY = {
    "stem": [(3, 3, 1, 2), (2,)],
    "norm": [(2,), (2,), (2,), (2,)],
    "inner": [(2, 3), (3,)],
    "head": [(3, 3), (3,)],
}
"""The shapes of the weights of the model in `functional.keras` and `whole.h5`, by layer."""


def counted(number: int, shape: tuple[int, ...]) -> np.ndarray:
    """What `make_keras.py` puts in the weight of a number."""
    return (np.arange(np.prod(shape)) / 2 + 100 * number).reshape(shape).astype(np.float32)


def expected_values() -> dict[tuple[str, int], np.ndarray]:
    """The values of the fixtures' model, by layer and number within it."""
    places = [(layer, n, shape) for layer, shapes in TINY.items() for n, shape in enumerate(shapes)]
    values = {(layer, n): counted(i, shape) for i, (layer, n, shape) in enumerate(places)}
    return {
        place: array.astype(ml_dtypes.bfloat16) if place[0] == "head" else array
        for place, array in values.items()
    }


def assert_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def layers_of(path: Path) -> Any:
    return json.loads(inspect(path).metadata["layers"])


def test_a_keras_3_archive_reads_by_hdf5_paths():
    numbers = {"stem": "conv2d", "norm": "batch_normalization", "head": "dense"}
    groups = {name: f"layers/{group}" for name, group in numbers.items()}
    groups["inner"] = "layers/sequential/layers/dense"
    expected = {
        f"{groups[layer]}/vars/{number}": array
        for (layer, number), array in expected_values().items()
    }
    assert_same(read(FIXTURES / "functional.keras"), dict(sorted(expected.items())))
    assert layers_of(FIXTURES / "functional.keras") == {
        "layers/input_layer": {"name": "image", "class": "InputLayer"},
        "layers/conv2d": {"name": "stem", "class": "Conv2D"},
        "layers/batch_normalization": {"name": "norm", "class": "BatchNormalization"},
        "layers/sequential": {"name": "inner", "class": "Sequential"},
        "layers/sequential/layers/dense": {"name": "first", "class": "Dense"},
        "layers/dense": {"name": "head", "class": "Dense"},
    }


def test_a_keras_3_archive_tells_its_configuration_and_version():
    metadata = inspect(FIXTURES / "functional.keras").metadata
    assert json.loads(metadata["model_config"])["config"]["name"] == "tiny"
    assert metadata["keras_version"] == "3.15.1"
    assert metadata["image_data_format"] == "channels_last"
    assert metadata.keys() == {
        "model_config", "keras_version", "date_saved", "image_data_format", "layers"
    }  # fmt: skip


def test_keras_3_weights_read_with_the_optimizers_state():
    assert_same(
        read(FIXTURES / "small.weights.h5"),
        {
            "layers/dense/vars/0": counted(0, (3, 2)),
            "layers/dense/vars/1": counted(1, (2,)),
            "optimizer/vars/0": np.array(0, np.int64),
            "optimizer/vars/1": np.array(0.5, np.float32),
            "optimizer/vars/2": np.zeros((3, 2), np.float32),
            "optimizer/vars/3": np.zeros(2, np.float32),
        },
    )
    assert layers_of(FIXTURES / "small.weights.h5") == {
        "layers/dense": {"name": "head"},
        "optimizer": {"name": "sgd"},
    }


def test_a_whole_model_without_an_optimizer_reads_without_its_container():
    names = {
        "stem": ["stem/stem/kernel", "stem/stem/bias"],
        "norm": [f"norm/norm/{n}" for n in ("gamma", "beta", "moving_mean", "moving_variance")],
        "inner": ["inner/inner/first/kernel", "inner/inner/first/bias"],
        "head": ["head/head/kernel", "head/head/bias"],
    }
    expected = {names[layer][n]: array for (layer, n), array in expected_values().items()}
    assert_same(read(FIXTURES / "whole.h5"), expected)
    metadata = inspect(FIXTURES / "whole.h5").metadata
    assert metadata["container"] == "model_weights"
    assert metadata["backend"] == "tensorflow"
    assert layers_of(FIXTURES / "whole.h5") == {
        "image": {"name": "image", "class": "InputLayer"},
        "stem": {"name": "stem", "class": "Conv2D"},
        "norm": {"name": "norm", "class": "BatchNormalization"},
        "inner": {"name": "inner", "class": "Sequential"},
        "head": {"name": "head", "class": "Dense"},
    }


def test_a_whole_model_with_an_optimizer_keeps_both_containers():
    path = FIXTURES / "whole_with_optimizer.h5"
    assert list(read(path)) == [
        "model_weights/head/small/head/kernel",
        "model_weights/head/small/head/bias",
        "optimizer_weights/sgd/iteration",
        "optimizer_weights/sgd/learning_rate",
        "optimizer_weights/sgd/small_head_kernel_momentum",
        "optimizer_weights/sgd/small_head_bias_momentum",
    ]
    metadata = inspect(path).metadata
    assert "container" not in metadata
    assert layers_of(path) == {"model_weights/head": {"name": "head", "class": "Dense"}}
    assert json.loads(metadata["training_config"])["loss"] == "mse"


@pytest.mark.parametrize("name", ["functional.keras", "small.weights.h5", "whole.h5"])
def test_what_is_inspected_is_what_is_read(name):
    flat = read(FIXTURES / name)
    assert [(t.name, t.shape, t.dtype, t.bytes) for t in inspect(FIXTURES / name).tensors] == [
        (name, array.shape, array.dtype.name, array.nbytes) for name, array in flat.items()
    ]
    # Nothing is copied, out of an archive neither.
    assert not any(array.flags.owndata or array.flags.writeable for array in flat.values())


def keras_1(path: Path, layers: dict[str, dict[str, np.ndarray]], **attributes: Any) -> Path:
    """A file as `save_weights` of Keras 1 and 2 writes it, its layers in the order given."""
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for layer, weights in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in weights]
            for name, array in weights.items():
                group[name] = array
    return path


def test_layers_and_weights_keep_the_order_that_keras_lists(tmp_path):
    layers = {
        "z": {"z_W:0": np.ones((2, 3)), "z_b:0": np.ones(3)},
        "relu": {},
        "fire2/squeeze": {"uniform2": np.zeros(2), "fire2/b": np.zeros(1)},
        "a": {"a/kernel:0": np.ones(1)},
    }
    path = keras_1(tmp_path / "a", layers)
    expected = [f"{layer}/{name}" for layer, weights in layers.items() for name in weights]
    assert list(read(path)) == expected
    assert list(layers_of(path)) == list(layers)


def test_lists_that_keras_cuts_are_put_together(tmp_path):
    names = [f"layer_{number}" for number in range(60)]
    with h5py.File(tmp_path / "a", "w") as file:
        for part, chunk in enumerate(np.array_split(np.array(names[::-1], "S"), 3)):
            file.attrs[f"layer_names{part}"] = chunk
        for name in names:
            group = file.create_group(name)
            group.attrs["weight_names0"], group.attrs["weight_names1"] = [b"b"], [b"a"]
            group["a"] = group["b"] = np.float32(1)
    found = list(read(tmp_path / "a"))
    assert found == [f"{name}/{weight}" for name in names[::-1] for weight in "ba"]
    with h5py.File(tmp_path / "a", "a") as file:
        del file.attrs["layer_names1"]
    with pytest.raises(FormatError, match=r"without \['layer_names1'\]"):
        read(tmp_path / "a")


def test_tensors_that_no_list_names_come_last(tmp_path):
    path = keras_1(tmp_path / "a", {"b": {"w": np.ones(1)}})
    with h5py.File(path, "a") as file:
        file["a10"], file["a9"] = np.ones(1), np.ones(1)
    assert list(read(path)) == ["b/w", "a9", "a10"]


def test_kernels_of_theano_read_as_they_are_and_the_ordering_is_told(tmp_path):
    kernel = np.arange(36.0).reshape(2, 1, 3, 6)
    config = {"class_name": "Sequential", "config": [
        {"class_name": "Convolution2D", "config": {"name": "c", "dim_ordering": "th"}}
    ]}  # fmt: skip
    path = keras_1(tmp_path / "a", {"c": {"c_W": kernel}}, model_config=json.dumps(config).encode())
    np.testing.assert_array_equal(read(path)["c/c_W"], kernel)
    metadata = inspect(path).metadata
    assert metadata["dim_ordering"] == "th" and "image_data_format" not in metadata
    assert layers_of(path) == {"c": {"name": "c", "class": "Convolution2D"}}


def test_other_hdf5_reads_by_its_paths_and_texts_are_metadata(tmp_path):
    with h5py.File(tmp_path / "a", "w") as file:
        file["encoder/w"] = np.arange(6).reshape(2, 3)
        file["labels"] = ["cat", "dog"]
        file.attrs["epoch"] = 3
        file.attrs["note"] = "ours"
    assert_same(read(tmp_path / "a"), {"encoder/w": np.arange(6).reshape(2, 3)})
    assert inspect(tmp_path / "a").metadata == {
        "epoch": "3",
        "note": "ours",
        "labels": '["cat", "dog"]',
    }


def test_a_configuration_of_ones_own_form_is_text_alone(tmp_path):
    config = '{"class_name": "Mine", "config": {"layers": 12}}'
    path = keras_1(tmp_path / "a", {"c": {"w": np.ones(1)}}, model_config=config)
    assert inspect(path).metadata["model_config"] == config
    assert layers_of(path) == {"c": {"name": "c"}}


def repacked(path: Path, to: Path, **changes: bytes | None) -> Path:
    """An archive like another, with members changed, added or (`None`) left out."""
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(to, "w") as after:
        for name in before.namelist():
            key = name.replace(".", "_")
            content = changes.pop(key) if key in changes else before.read(name)
            if content is not None:
                after.writestr(name, content)
        for name, content in changes.items():
            after.writestr(name, content or b"")
    return to


def test_a_compressed_archive_reads_alike(tmp_path):
    with (
        zipfile.ZipFile(FIXTURES / "functional.keras") as before,
        zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_DEFLATED) as after,
    ):
        for name in before.namelist():
            after.writestr(name, before.read(name))
    assert_same(read(tmp_path / "a"), read(FIXTURES / "functional.keras"))


def test_other_members_of_an_archive_are_told(tmp_path):
    path = repacked(FIXTURES / "functional.keras", tmp_path / "a", **{"assets/words.txt": b"cat"})
    assert inspect(path).metadata["other members"] == '["assets/words.txt"]'


def lists_of(**attributes: list[bytes]) -> Any:
    def make(path: Path) -> Path:
        keras_1(path, {"b": {"w": np.ones(1)}})
        with h5py.File(path, "a") as file:
            file.attrs.update(attributes)
        return path

    return make


def packed_bomb(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(4 * 10**7))
    return path


def flipped(path: Path) -> Path:
    content = bytearray((FIXTURES / "functional.keras").read_bytes())
    content[content.index(np.float32(500.5).tobytes())] ^= 1
    path.write_bytes(content)
    return path


DAMAGED = {
    "a layer that is absent": (
        lists_of(layer_names=[b"b", b"c"]),
        r"1 listed names that are not in the file: \['c'\]",
    ),
    "a layer listed twice": (lists_of(layer_names=[b"b", b"b"]), "layer_names with 1 repeated"),
    "layers that are no names": (
        lists_of(layer_names=[1, 2]),  # pyright: ignore[reportArgumentType]
        "layer_names that is no list of names",
    ),
    "a configuration that is no JSON": (
        lambda path: keras_1(path, {"b": {"w": np.ones(1)}}, model_config="{'a': 1}"),
        "model_config, which is no JSON",
    ),
    "an archive without weights": (
        lambda path: repacked(FIXTURES / "functional.keras", path, model_weights_h5=None),
        r"an archive of \['config.json', 'metadata.json'\], 0 members repeated",
    ),
    "an archive whose weights are none": (
        lambda path: repacked(FIXTURES / "functional.keras", path, model_weights_h5=b"abcdefgh"),
        "in model.weights.h5: b'abcdefgh' where an HDF5 file begins with",
    ),
    "a packed bomb": (packed_bomb, "the member 'model.weights.h5' of 40000000 bytes in a file"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_is_a_format_error(tmp_path, name):
    make, reason = DAMAGED[name]
    path = make(tmp_path / "damaged")
    with pytest.raises(FormatError, match=rf"damaged: expected .*found at byte \d+: {reason}"):
        read(path)
        inspect(path)


def test_a_changed_value_in_an_archive_is_found_by_its_checksum(tmp_path):
    path = flipped(tmp_path / "a")
    with pytest.raises(FormatError, match="'model.weights.h5' with another checksum"):
        read(path)
    assert len(inspect(path).tensors) == 10  # The headers are whole.


def test_what_is_not_read_here_is_no_damage_and_has_a_remedy(tmp_path):
    with h5py.File(tmp_path / "a", "w") as file:
        file["w"] = h5py.ExternalLink("/etc/passwd", "w")
    with pytest.raises(FormatError, match="external link 'w', which is not read here; write") as e:
        read(tmp_path / "a")
    assert "damaged" not in str(e.value)


def test_every_truncation_of_an_archive_is_a_format_error(tmp_path):
    content = (FIXTURES / "functional.keras").read_bytes()
    for length in range(0, len(content), 499):
        (tmp_path / "a").write_bytes(content[:length])
        for function in (read, inspect):
            with pytest.raises(FormatError, match=r"found at byte \d+: "):
                function(tmp_path / "a")


def test_files_are_known_by_their_content(tmp_path):
    def matching(path: Path) -> bool:
        return matches(path.read_bytes()[:1024], path)

    assert all(matching(path) for path in FIXTURES.iterdir() if path.suffix in (".h5", ".keras"))
    archive = FIXTURES / "functional.keras"
    (tmp_path / "cut").write_bytes(archive.read_bytes()[:9000])
    assert matching(tmp_path / "cut")
    npz.write({"w": np.ones(2)}, tmp_path / "a.npz")
    repacked(archive, tmp_path / "other", model_weights_h5=None)
    assert not matching(tmp_path / "a.npz") and not matching(tmp_path / "other")
    assert not matches(b"", tmp_path) and not matches(b"PK\x03\x04", tmp_path / "absent")


def test_nothing_there_and_a_folder_there(tmp_path):
    with pytest.raises(ReferenceNotFoundError, match="absent"):
        read(tmp_path / "absent")
    with pytest.raises(FormatError):
        read(tmp_path)


def test_a_file_that_is_moved_away_after_reading_stays_readable(tmp_path):
    shutil.copy(FIXTURES / "whole.h5", tmp_path / "a")
    found = read(tmp_path / "a")
    (tmp_path / "a").unlink()
    np.testing.assert_array_equal(found["stem/stem/bias"], counted(1, (2,)))


def test_it_is_a_reader_that_does_not_write():
    assert keras.READER.write is None and keras.READER.name == "keras"


REAL = {
    # File: tensors, values, SHA-256 of all in the order of their names, the first and last name.
    "squeezenet_v1.1_keras_notop/squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5": (
        50,
        722_496,
        "d44119c6e1984601d82d5d8fce3086bb4ee567c4467ee24436064f95dae23705",
        "conv1/uniform1",
        "fire9/expand3x3/fire9/expand3x3_b",
    ),
    "mobilenet_v1_0.25_224_keras_notop/mobilenet_2_5_224_tf_no_top.h5": (
        135,
        218_544,
        "4f53f7f794626b1a0a28eda27b5e2f5a85ae559d3155b85a9a00e6e258f31420",
        "conv1/conv1/kernel:0",
        "conv_pw_13_bn/conv_pw_13_bn/moving_variance:0",
    ),
    "mlperf_tiny_keras/pretrainedResnet.h5": (
        117,
        235_039,
        "54c091b0a3fc0e60725e8daa127fa1032842a82ea60754406dbbe076ad5ecada",
        "model_weights/conv2d/conv2d/kernel:0",
        "optimizer_weights/Adam/dense/bias/v:0",
    ),
    "mlperf_tiny_keras/vww_96.h5": (
        385,
        654_439,
        "7997df166eb8d359240593c599a6047864acb58207ef689e16ddee4e94e2cdf5",
        "model_weights/conv2d/conv2d/kernel:0",
        "optimizer_weights/Adam/dense/bias/v:0",
    ),
}
"""What h5py says of them."""


@pytest.mark.parametrize("name", REAL, ids=lambda name: Path(name).name)
def test_real_weights(real_data, name):
    path = real_data / "weights" / name
    if not path.exists():
        pytest.skip(f"no {path.name} in {real_data}")
    tensors, values, digest, first, last = REAL[name]
    flat, inspection = read(path), inspect(path)
    assert (len(flat), inspection.parameters) == (tensors, values)
    assert (list(flat)[0], list(flat)[-1]) == (first, last)
    found = hashlib.sha256()
    for name in sorted(flat):
        assert not flat[name].flags.owndata
        found.update(f"{name}\0{flat[name].shape}".encode() + flat[name].tobytes())
    assert found.hexdigest() == digest


def test_real_metadata(real_data):
    path = real_data / "weights" / "mlperf_tiny_keras" / "vww_96.h5"
    if not path.exists():
        pytest.skip(f"no {path.name} in {real_data}")
    metadata = inspect(path).metadata
    assert metadata["keras_version"] == "2.4.0" and metadata["backend"] == "tensorflow"
    assert metadata["image_data_format"] == "channels_last"
    layers = json.loads(metadata["layers"])
    kinds = [layer["class"] for layer in layers.values()]
    assert len(layers) == 85 and kinds.count("DepthwiseConv2D") == 13
    assert layers["model_weights/dense"] == {"name": "dense", "class": "Dense"}
