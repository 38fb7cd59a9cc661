"""Every reader on damaged files: a `FormatError` or arrays, and nothing else happens.

Each format's files are damaged thousands of times, each time in a few places, and read by a process
of their own (hostile.py), which limits memory and time and forbids code, processes, sockets and
other files. Real weights are damaged where they are present, else small files that are made here.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
from flax import serialization
from orbax.checkpoint import PyTreeCheckpointer

from jaxtransfer.formats import read_weights, readers, write_weights
from jaxtransfer.formats.darknet import read as read_darknet
from jaxtransfer.formats.orbax import write as write_orbax

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CASES = 2000
ROUNDS = 25
HANGS, CRASHES = -14, -11
"""What a process returns that SIGALRM or SIGSEGV ended."""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="only Linux limits and tells what is allocated"
)


# The files that are damaged. A builder puts them into a folder and returns the path that is read.

Build = Callable[[Path], Path]
BuildFrom = Callable[[Path, Path], Path]
"""The second path is the folder of real weights."""


class Seed(NamedTuple):
    """The undamaged files of a format.

    Attributes:
        module: the module with the reader.
        small: makes small ones, or copies a fixture; for lack of real ones, or because reading
            these thousands of times would take too long.
        real: copies real ones.
        part: makes smaller ones of real ones, if reading these would take too long.
        options: more options for the process.
        is_further: whether another entry stands for this one in the quick tests.
    """

    module: str
    small: Build
    real: BuildFrom | None = None
    part: BuildFrom | None = None
    options: tuple[str, ...] = ()
    is_further: bool = False


def copy_of(*names: str) -> BuildFrom:
    """Copies files; the first one is read."""

    def build(folder: Path, source: Path) -> Path:
        for name in names:
            shutil.copyfile(source / name, folder / Path(name).name)
        return folder / Path(names[0]).name

    return build


def fixture(*names: str) -> Build:
    return lambda folder: copy_of(*names)(folder, HERE / "fixtures")


def few_tensors() -> dict[str, np.ndarray]:
    values = np.random.default_rng(0)
    return {
        "conv/kernel": values.normal(size=(3, 3, 2, 4)).astype(np.float32),
        "conv/bias": values.normal(size=4).astype(np.float16),
        "norm/count": np.array(7),
        "empty": np.empty((0, 3), np.float32),
    }


def small_safetensors(folder: Path) -> Path:
    write_weights(few_tensors(), folder / "model.safetensors", {"format": "pt", "epoch": "3"})
    return folder / "model.safetensors"


def small_npz(folder: Path) -> Path:
    np.savez_compressed(folder / "model.npz", **few_tensors())  # pyright: ignore[reportArgumentType]
    return folder / "model.npz"


def small_msgpack(folder: Path) -> Path:
    tree = {"params": few_tensors(), "step": 3, "names": {"0": "a", "1": "b"}}
    (folder / "model.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    return folder / "model.msgpack"


def sharded(folder: Path, flat: dict[str, np.ndarray]) -> Path:
    names = list(flat)
    shards = {f"model-{n + 1}-of-2.safetensors": names[n::2] for n in range(2)}
    for shard, mine in shards.items():
        write_weights({name: flat[name] for name in mine}, folder / shard, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    places = {name: shard for shard, mine in shards.items() for name in mine}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}, indent=2))
    return index


def small_hdf5(folder: Path) -> Path:
    """A file as Keras 2 writes it, with one dataset in packed chunks."""
    path = folder / "model.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"conv", b"norm"]
        file.attrs["keras_version"] = b"2.4.0"
        for layer, names in {"conv": ["kernel", "bias"], "norm": ["count"]}.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [f"{layer}/{name}:0".encode() for name in names]
            for name in names:
                values = few_tensors()[f"{layer}/{name}"]
                packed = {"chunks": (2, 2, 2, 2), "compression": "gzip", "shuffle": True}
                group.create_dataset(
                    f"{layer}/{name}:0", data=values, **(packed if name == "kernel" else {})
                )
    return path


def small_keras(folder: Path) -> Path:
    """An archive as Keras 3 writes it."""
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.15.0"}')
        config = {"module": "keras", "class_name": "Sequential", "config": {"layers": []}}
        archive.writestr("config.json", json.dumps(config))
        stream = io.BytesIO()
        with h5py.File(stream, "w") as file:
            variables: Any = file.create_group("layers/conv2d/vars")
            variables["0"] = few_tensors()["conv/kernel"]
            variables["1"] = few_tensors()["conv/bias"]
            file["layers/conv2d"].attrs["name"] = "conv"
        archive.writestr("model.weights.h5", stream.getvalue())
    return folder / "model.keras"


def small_orbax(use_ocdbt: bool) -> Build:
    """A folder as Orbax writes it, with its chunks in a database or as files."""

    def build(folder: Path) -> Path:
        tree = {"conv": {"kernel": few_tensors()["conv/kernel"]}}
        PyTreeCheckpointer(use_ocdbt=use_ocdbt).save(folder / "checkpoint", tree)
        return folder / "checkpoint"

    return build


def small_orbax_of_ours(folder: Path) -> Path:
    write_orbax(few_tensors(), folder / "model.orbax")
    return folder / "model.orbax"


def lines_of(name: str, count: int, header: str = "") -> BuildFrom:
    """The first lines of a text, below a header of their own."""

    def build(folder: Path, weights: Path) -> Path:
        lines = (weights.parent / "text" / name).read_bytes().splitlines(keepends=True)
        chosen = lines[bool(header) :][:count]
        (folder / name).write_bytes(header.encode() + b"".join(chosen))
        return folder / name

    return build


def small_vectors(folder: Path) -> Path:
    values = np.random.default_rng(0).normal(size=(40, 8))
    lines = [f"word{row} " + " ".join(f"{x:.5f}" for x in values[row]) for row in range(40)]
    (folder / "vectors.txt").write_text("\n".join(lines) + "\n")
    return folder / "vectors.txt"


def fields_of(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """The fields of a protocol buffer: the number, the content, and the field as it is written."""
    stream = io.BytesIO(message)

    def varint() -> int:
        value = shift = 0
        while (byte := stream.read(1)[0]) >= 0x80:
            value += (byte & 0x7F) << shift
            shift += 7
        return value + (byte << shift)

    while (begin := stream.tell()) < len(message):
        number, kind = divmod(varint(), 8)
        length = {0: 0, 1: 8, 5: 4}[kind] if kind != 2 else varint()
        if kind == 0:
            varint()
        content = stream.read(length)
        yield number, content, message[begin : stream.tell()]


def field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer with bytes."""

    def varint(value: int) -> bytes:
        return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + varint(value >> 7)

    return varint(number << 3 | 2) + varint(len(content)) + content


def small_caffe(folder: Path) -> Path:
    values = np.arange(12, dtype="<f4").tobytes()
    weights = field(7, field(7, field(1, bytes([3, 4]))) + field(5, values))
    bias = field(7, field(7, field(1, bytes([3]))) + field(5, values[:12]))
    layer = field(1, b"fc") + field(2, b"InnerProduct") + weights + bias
    (folder / "net.caffemodel").write_bytes(field(1, b"net") + field(100, layer))
    return folder / "net.caffemodel"


def small_darknet(folder: Path) -> Path:
    sections = (
        ("net", "width=8", "height=8", "channels=3"),
        ("convolutional", "filters=2", "size=3"),
    )
    lines = [f"[{section}]\n" + "\n".join(options) + "\n" for section, *options in sections]
    (folder / "net.cfg").write_text("\n".join(lines))
    header = np.array([0, 2, 0, 0, 0], "<i4").tobytes()
    values = np.arange(2 + 2 * 3 * 3 * 3, dtype="<f4").tobytes()
    (folder / "net.weights").write_bytes(header + values)
    return folder / "net.weights"


def small_onnx(folder: Path) -> Path:
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in few_tensors().items()]
    node = onnx.helper.make_node("Identity", ["conv/bias"], ["out"])
    graph = onnx.helper.make_graph([node], "net", [], [], tensors)
    path = folder / "net.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return path


def shorter(message: bytes, long: int) -> bytes:
    """A protocol buffer without the fields that are long."""
    return b"".join(field for _, _, field in fields_of(message) if len(field) < long)


def part_of_npz(folder: Path, weights: Path) -> Path:
    """The small arrays of a real file."""
    path = folder / "decoded_float32.npz"
    with np.load(weights / SQUEEZENET) as whole:
        few = {name: whole[name] for name in whole.files if whole[name].nbytes < 20_000}
    np.savez_compressed(path, **few)  # pyright: ignore[reportArgumentType]
    return path


def part_of_keras(name: str) -> BuildFrom:
    """The first layers of a real file."""

    def build(folder: Path, weights: Path) -> Path:
        path = folder / Path(name).name
        with h5py.File(weights / name) as whole, h5py.File(path, "w") as file:
            group: Any = whole.get("model_weights", whole)
            layers = [layer for layer in group.attrs["layer_names"] if len(group[layer])][:2]
            for key, value in {**whole.attrs, **group.attrs, "layer_names": layers}.items():
                file.attrs[key] = value
            for layer in layers:
                file.copy(group[layer], layer.decode())
        return path

    return build


def part_of_caffe(folder: Path, weights: Path) -> Path:
    """The layers of a real file that have few weights."""
    path = folder / "slim-320.caffemodel"
    path.write_bytes(shorter((weights / CAFFE).read_bytes(), 1500))
    return path


def part_of_onnx(folder: Path, weights: Path) -> Path:
    """A real file without its large initialisers and most of its nodes."""
    whole = (weights / ULTRAFACE).read_bytes()
    ((graph, graph_field),) = [(content, field) for n, content, field in fields_of(whole) if n == 7]
    fields = [(number, field) for number, _, field in fields_of(graph) if len(field) < 2000]
    nodes = [field for number, field in fields if number == 1][:20]
    tensors = [field for number, field in fields if number == 5][:20]
    others = [field for number, field in fields if number not in (1, 5)]
    kept = b"".join([*nodes, *others, *tensors])
    size = [(len(kept) >> 7 * group & 0x7F) | 0x80 * (group < 2) for group in range(3)]
    path = folder / "version-slim-320.onnx"
    path.write_bytes(whole.replace(graph_field, bytes([7 << 3 | 2, *size]) + kept))
    return path


def part_of_darknet(folder: Path, weights: Path) -> Path:
    """The first layers of a real network."""
    sections = (weights / DARKNET[1]).read_text().split("\n[")
    layers = 12
    flat = read_darknet(weights / DARKNET[0])
    values = sum(array.nbytes for name, array in flat.items() if int(name.split("/")[0]) < layers)
    (folder / "part.cfg").write_text("\n[".join(sections[: layers + 1]) + "\n")
    header = 20  # Three int32 of the version and an int64 of the images seen.
    path = folder / "part.weights"
    path.write_bytes((weights / DARKNET[0]).read_bytes()[: header + values])
    return path


SILERO = "silero_vad_safetensors_onnx/silero_vad_16k.safetensors"
SQUEEZENET = "squeezenet_v1.0_deepcompression/decoded_float32.npz"
RESNET_20 = "cifar10_resnet/resnet20-12fca82f.th"
RESNET_32 = "cifar10_resnet/resnet32-d509ac18.th"
ULTRAFACE_PTH = "ultraface_slim/version-slim-320.pth"
SILERO_ONNX = "silero_vad_safetensors_onnx/silero_vad.onnx"
SQUEEZENET_H5 = "squeezenet_v1.1_keras_notop/squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5"
WAKE_WORDS = "mlperf_tiny_keras/vww_96.h5"
CAFFE = "ultraface_slim/slim-320.caffemodel"
ULTRAFACE = "ultraface_slim/version-slim-320.onnx"
RESNET_8 = "mlperf_tiny_keras/pretrainedResnet.h5"
MOBILENET = "mobilenet_v1_0.25_224_keras_notop/mobilenet_2_5_224_tf_no_top.h5"
DARKNET = [f"yolo_fastest_darknet/yolo-fastest-1.1.{suffix}" for suffix in ("weights", "cfg")]
VARIABLES = [
    f"mlperf_tiny_kws_savedmodel/variables/variables.{suffix}"
    for suffix in ("index", "data-00000-of-00001")
]
OBJECTS = [f"tensorflow/objects/ckpt-1.{suffix}" for suffix in ("index", "data-00000-of-00001")]
GLOVE, GOOGLE_NEWS = "glove_twitter_25d_12k.txt", "googlenews300_top1000.w2v.txt"

BEHIND_ZIP = ("--inside-zip",)
BEHIND_TABLE = ("--forget-checksums", "masked")

SEEDS = {
    "safetensors": Seed("safetensors", small_safetensors, copy_of(SILERO)),
    "sharded safetensors": Seed(
        "sharded",
        lambda folder: sharded(folder, few_tensors()),
        lambda folder, weights: sharded(folder, read_weights(weights / SILERO)),
    ),
    "npz": Seed("npz", small_npz, copy_of(SQUEEZENET), part_of_npz),
    "npz, members": Seed("npz", small_npz, options=BEHIND_ZIP),
    "torch, legacy": Seed(
        "torch",
        fixture("torch/legacy.pt"),
        copy_of(RESNET_20),
        lambda folder, _: fixture("torch/legacy.pt")(folder),
    ),
    "torch, ResNet-32": Seed(
        "torch", fixture("torch/legacy.pt"), copy_of(RESNET_32), is_further=True
    ),
    "torch, Ultraface": Seed(
        "torch", fixture("torch/legacy.pt"), copy_of(ULTRAFACE_PTH), is_further=True
    ),
    "torch, zip": Seed("torch", fixture("torch/zip.pt")),
    "torch, zip members": Seed(
        "torch", fixture("torch/zip.pt"), options=BEHIND_ZIP, is_further=True
    ),
    "torch, TorchScript members": Seed("torch", fixture("torch/script.pt"), options=BEHIND_ZIP),
    "msgpack": Seed("msgpack", small_msgpack),
    "Keras, HDF5": Seed("keras", small_hdf5, copy_of(RESNET_8), part_of_keras(RESNET_8)),
    "Keras, Keras 1 HDF5": Seed(
        "keras", small_hdf5, copy_of(MOBILENET), part_of_keras(MOBILENET), is_further=True
    ),
    "Keras, SqueezeNet": Seed("keras", small_hdf5, copy_of(SQUEEZENET_H5), is_further=True),
    "Keras, wake words": Seed("keras", small_hdf5, copy_of(WAKE_WORDS), is_further=True),
    "Keras, archive": Seed("keras", small_keras),
    "Keras, archive's members": Seed("keras", small_keras, options=BEHIND_ZIP),
    "TensorFlow": Seed(
        "tensorflow",
        fixture(*OBJECTS),
        copy_of(*VARIABLES),
        lambda folder, _: fixture(*OBJECTS)(folder),
    ),
    "TensorFlow, behind checksums": Seed(
        "tensorflow",
        fixture(*OBJECTS),
        copy_of(*VARIABLES),
        lambda folder, _: fixture(*OBJECTS)(folder),
        BEHIND_TABLE,
    ),
    "TensorFlow 1": Seed("tensorflow", fixture("tensorflow/version1")),
    "TensorFlow 1, behind checksums": Seed(
        "tensorflow", fixture("tensorflow/version1"), options=BEHIND_TABLE
    ),
    "Caffe": Seed("caffe", small_caffe, copy_of(CAFFE), part_of_caffe),
    "Darknet": Seed("darknet", small_darknet, copy_of(*DARKNET), part_of_darknet),
    "ONNX": Seed("onnx", small_onnx, copy_of(ULTRAFACE), part_of_onnx),
    "ONNX, Silero": Seed("onnx", small_onnx, copy_of(SILERO_ONNX), is_further=True),
    "Orbax, database": Seed("orbax", small_orbax(use_ocdbt=True)),
    "Orbax, files": Seed("orbax", small_orbax(use_ocdbt=False), is_further=True),
    "Orbax, written here": Seed("orbax", small_orbax_of_ours, is_further=True),
    "word vectors, GloVe": Seed(
        "wordvectors", small_vectors, lines_of(GLOVE, 500), lines_of(GLOVE, 30)
    ),
    "word vectors, word2vec": Seed(
        "wordvectors",
        small_vectors,
        lines_of(GOOGLE_NEWS, 100, "100 300\n"),
        lines_of(GOOGLE_NEWS, 3, "3 300\n"),
    ),
    "word vectors, fastText": Seed("wordvectors", fixture("fasttext/supervised.bin")),
}


# The process that reads them.


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder, in memory where there is such a place: it is written to without end."""
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="jaxtransfer-hostile-", dir=place) as name:
        (Path(name) / "files").mkdir()
        yield Path(name) / "files"


def run(*arguments: str | Path, python_path: Path = ROOT) -> tuple[int, str]:
    """The return code of the process and what it said."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(python_path),
        # Freed memory goes back at once, so that what one case used does not serve the next one.
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": str(2**18),
        "MALLOC_TRIM_THRESHOLD_": str(2**18),
        # Threads would allocate stacks.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    process = subprocess.run(
        [sys.executable, HERE / "hostile.py", *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    return process.returncode, process.stdout + process.stderr[-4000:]


def damage(seed: Seed, folder: Path, build: Build, rounds: int) -> dict[str, Any]:
    """Damage the files of a format and read them; the counts."""
    path = build(folder)
    module = f"jaxtransfer.formats.{seed.module}"
    how_many = ("--rounds", str(rounds), "--cases", str(CASES))
    code, said = run(module, path, folder, *seed.options, *how_many)
    last = Path(f"{folder}.case")
    case = last.read_text().partition("\n")[0] if last.exists() else "none"
    assert code == 0, f"the process returned {code} at the case {case}:\n{said}"
    print(said, end="")
    return json.loads(said)


@pytest.fixture
def weights(request: pytest.FixtureRequest) -> Path | None:
    try:
        return request.getfixturevalue("real_data") / "weights"
    except pytest.skip.Exception:
        return None


def build_of(seed: Seed, weights: Path | None, is_quick: bool) -> Build:
    """The builder of the files that are damaged here and now."""
    from_real = seed.part or seed.real if is_quick else seed.real
    if weights is not None and from_real is not None:
        return lambda folder: from_real(folder, weights)
    return seed.small


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, seed in SEEDS.items() if not seed.is_further])
def test_a_damaged_file_is_read_or_is_a_format_error(name, folder, weights):
    seed = SEEDS[name]
    counts = damage(seed, folder, build_of(seed, weights, is_quick=True), rounds=1)
    assert counts["cases"] == counts["accepted"] + counts["refused"] == CASES
    assert counts["accepted"] and counts["refused"]


@pytest.mark.hostile
@pytest.mark.parametrize("name", SEEDS)
def test_a_damaged_file_is_read_or_is_a_format_error_in_50_000_cases(name, folder, weights):
    seed = SEEDS[name]
    counts = damage(seed, folder, build_of(seed, weights, is_quick=False), ROUNDS)
    assert counts["cases"] == counts["accepted"] + counts["refused"] == CASES * ROUNDS


# Files that are made to do harm. Each stands in a folder of its own, beside the undamaged files.

BOMB_BYTES = 100 * 2**20
DEEP = 1_000_000


def rewritten_zip(path: Path, target: Path, changes: Mapping[str, bytes]) -> Path:
    """A zip archive with other members, packed; a member is named by the end of its path."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", 8, compresslevel=1) as new:
        for name in source.namelist():
            ends = [end for end in changes if name.endswith(end)]
            new.writestr(name, changes[ends[0]] if ends else source.read(name))
    return target


def bomb(path: Path, folder: Path) -> Path:
    """An archive whose longest member is followed by a hundred mebibytes of zeros."""
    with zipfile.ZipFile(path) as archive:
        longest = max(archive.infolist(), key=lambda info: info.file_size).filename
        content = archive.read(longest) + bytes(BOMB_BYTES)
    return rewritten_zip(path, folder / path.name, {longest: content})


def deep_pickle(path: Path, folder: Path) -> Path:
    nested = b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b"."
    return rewritten_zip(path, folder / path.name, {"data.pkl": nested})


def content(make: Callable[[bytes], bytes]) -> Callable[[Path, Path], Path]:
    """A file with other content, made from the undamaged one's."""

    def build(path: Path, folder: Path) -> Path:
        (folder / path.name).write_bytes(make(path.read_bytes()))
        return folder / path.name

    return build


def deep_onnx(_: bytes) -> bytes:
    """Graphs in attributes of nodes of graphs: fields 6, 5 and 1."""
    graph = b""
    for _depth in range(500):
        graph = field(1, field(5, field(6, graph)))
    return b"\x08\x08" + field(7, graph)


def looped_hdf5(path: Path, folder: Path) -> Path:
    shutil.copyfile(path, folder / path.name)
    with h5py.File(folder / path.name, "a") as file:
        file["conv/loop"] = file["conv"]
        file.attrs["layer_names"] = [b"conv/loop/loop/loop", b"conv"]
        del file["conv"].attrs["weight_names"]
    return folder / path.name


def linked_hdf5(path: Path, folder: Path) -> Path:
    shutil.copyfile(path, folder / path.name)
    with h5py.File(folder / path.name, "a") as file:
        del file["conv/conv/bias:0"]
        file["conv/conv/bias:0"] = h5py.ExternalLink(str(path), "norm/norm/count:0")
    return folder / path.name


def index_of(shard: str) -> Callable[[Path, Path], Path]:
    """An index whose shard is not where it should be."""

    def build(path: Path, folder: Path) -> Path:
        (folder / path.name).write_text(json.dumps({"weight_map": {"conv/kernel": shard}}))
        (folder / "link.safetensors").symlink_to(path.parent / "model-1-of-2.safetensors")
        return folder / path.name

    return build


def linked_beside(path: Path, folder: Path) -> Path:
    """A file as it should be, and the one beside it as a link to elsewhere."""
    for file in path.parent.iterdir():
        if file == path:
            shutil.copyfile(file, folder / file.name)
        else:
            (folder / file.name).symlink_to(file)
    return folder / path.name


def linked_within(path: Path, folder: Path) -> Path:
    """A folder as it should be, but that its largest file is a link to elsewhere."""
    shutil.copytree(path, folder / path.name)
    files = [file for file in path.rglob("*") if file.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    link = folder / path.name / largest.relative_to(path)
    link.unlink()
    link.symlink_to(largest)
    return folder / path.name


TRAPS: dict[str, dict[str, Callable[[Path, Path], Path]]] = {
    "safetensors": {
        "deep": content(lambda _: (2 * DEEP).to_bytes(8, "little") + b'{"a":' + b"[" * 2 * DEEP),
        "long": content(lambda whole: b"\xff" * 7 + b"\x7f" + whole[8:]),
    },
    "sharded safetensors": {
        "deep": content(lambda _: b'{"weight_map": ' + b"[" * DEEP),
        "itself": index_of("model.safetensors.index.json"),
        "elsewhere": index_of("../files/model-1-of-2.safetensors"),
        "link": index_of("link.safetensors"),
    },
    "npz": {"bomb": bomb},
    "torch, zip": {"bomb": bomb, "deep": deep_pickle},
    "torch, legacy": {
        "system": content(lambda _: b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R."),
        "deep": content(lambda whole: whole[:17] + b"\x80\x02" + b"]" * DEEP),
    },
    "msgpack": {
        "deep": content(lambda _: b"\x81\xa1a" + b"\x91" * DEEP + b"\xc0"),
        "wide": content(lambda _: b"\x81\xa1a\xdd\xff\xff\xff\xff" + b"\xc0" * DEEP),
    },
    "Keras, HDF5": {"loop": looped_hdf5, "link": linked_hdf5},
    "Keras, archive": {"bomb": bomb},
    "TensorFlow": {"link": linked_beside},
    "Caffe": {"deep": content(lambda _: b"\x0b" * DEEP)},
    "ONNX": {"deep": content(deep_onnx)},
    "Orbax, database": {"link": linked_within},
    "Orbax, files": {"link": linked_within},
    "Orbax, written here": {"link": linked_within},
    "word vectors, word2vec": {
        "long": content(lambda _: b"999999999999 999999999\n" + b"word " + bytes(4000)),
        "one word": content(lambda _: b"2 3\n" + b"w" * DEEP),
    },
}


def test_what_is_made_to_do_harm_is_a_format_error(folder):
    names, trials = [], []
    for number, (name, seed) in enumerate(SEEDS.items()):
        if seed.options:
            continue
        path = seed.small(make_folder(folder / str(number) / "files"))
        traps = TRAPS.get(name, {})
        if path.is_file():
            nothing, byte = content(lambda _: b""), content(lambda whole: whole[:1])
            traps = {**traps, "nothing": nothing, "a byte": byte}
        paths = [
            trap(path, make_folder(folder / str(number) / str(position)))
            for position, trap in enumerate(traps.values())
        ]
        names += [f"{name}: {trap}" for trap in traps]
        module = f"jaxtransfer.formats.{seed.module}"
        trials.append([module, str(path), str(path.parent), list(map(str, paths))])
    (folder / "traps.json").write_text(json.dumps(trials))
    code, said = run("--traps", folder / "traps.json")
    assert code == 0, said
    assert dict(zip(names, json.loads(said), strict=True)) == dict.fromkeys(names, "")


def make_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def test_every_reader_is_tried():
    modules = {f"jaxtransfer.formats.{seed.module}" for seed in SEEDS.values()}
    names = {importlib.import_module(module).NAME for module in modules}
    assert {reader.name for reader in readers()} <= names


# The guards themselves, shown on readers that misbehave.

BEHAVIOUR = {
    "nothing wrong": ("pass", ""),
    "as much as is allowed": ("np.ones(60 << 20, np.uint8)", ""),
    "a refusal": ("raise FormatError(f'{path}: found at byte 3: a hole')", ""),
    "an array of NumPy": ("np.empty(80 << 20, np.uint8)", "allocated too much"),
    "an object of Python": ("bytes(80 << 20)", "allocated too much"),
    "many small objects": ("[bytes(40) for _ in range(1 << 20)]", "allocated too much"),
    "a library in C": (
        "sqlite3.connect(':memory:').execute('select randomblob(80000000)').fetchone()",
        "allocated too much",
    ),
    "a library's own word for it": (
        "raise FormatError(f'{path}: at byte 0') from OSError('memory allocation failed')",
        "allocated too much",
    ),
    "a command": ("os.system('true')", "os.system"),
    "a command that is kept quiet": (
        "try: os.system('true')\n        except BaseException: pass",
        "os.system",
    ),
    "a process": ("subprocess.run(['true'])", "subprocess.Popen"),
    "a pickle": ("pickle.loads(b'cbuiltins\\nlen\\n.')", "pickle.find_class"),
    "code": ("exec('1')", "exec"),
    "a socket": ("socket.socket().connect(('127.0.0.1', 9))", "socket"),
    "an import": ("import antigravity", "imported antigravity"),
    "a file elsewhere": ("open('/etc/passwd')", "opened '/etc/passwd'"),
    "a file that is written": ("open(path, 'r+b')", "for writing"),
    "another error": ("raise ValueError('odd')", "ValueError: odd"),
    "a file that is there": ("raise ReferenceNotFoundError(path)", "not a FormatError"),
    "no path": ("raise FormatError('at byte 0: a hole')", "without the path"),
    "no byte": ("raise FormatError(f'{path}: a hole')", "without the byte"),
    "objects": ("return {'w': np.array([None])}", "an array of object"),
    "another byte order": ("return {'w': np.ones(2, '>f4')}", "an array of >f4"),
    "another shape than the header's": ("return {'w': np.ones(3, np.float32)}", "by its headers"),
    "another name than the header's": ("return {'v': np.ones(2, np.float32)}", "by its headers"),
    "hang": ("while True: pass", HANGS),
    "hang in a library": ("time.sleep(60)", HANGS),
    "crash": ("ctypes.string_at(0)", CRASHES),
}
"""What a reader does, and what the harness says of it, or what its process returns."""

BAD_READER = """
import ctypes, os, pickle, socket, sqlite3, subprocess, time
import numpy as np
from jaxtransfer.errors import FormatError, ReferenceNotFoundError
from jaxtransfer.formats.base import Inspection, Reader, TensorInfo

NAME = "bad"

def read(path):
    behaviour = path.read_bytes()[0]
{cases}
    return {{"w": np.ones(2, np.float32)}}

def inspect(path):
    return Inspection(path, NAME, (TensorInfo("w", (2,), "float32", 8),))

READER = Reader(NAME, lambda head, path: False, read, inspect)
"""


def becomes(value: int) -> str:
    """The case that flips bits of the first byte until it has a value."""
    flips = [bytes([0, 0, 0, 0, 0, 0, bit, 0]) for bit in range(8) if value >> bit & 1]
    return (b"\0" + b"".join(flips)).hex()


@pytest.fixture
def misbehave(folder: Path, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Reads with a reader that behaves as the first byte of the damaged file says."""
    code = [
        f"    if behaviour == {number}:\n        {statement}\n"
        for number, (statement, _) in enumerate(BEHAVIOUR.values(), start=1)
    ]
    (tmp_path / "bad_reader.py").write_text(BAD_READER.format(cases="".join(code)))
    (folder / "weights").write_bytes(bytes(600))
    numbers = {name: number for number, name in enumerate(BEHAVIOUR, start=1)}

    def read(*names: str) -> tuple[int, str]:
        cases = [becomes(numbers[name]) for name in names]
        path = folder / "weights"
        options = ("--seconds", "1", "--only", *cases)
        return run("bad_reader", path, folder, *options, python_path=tmp_path)

    return read


def test_what_no_reader_may_do_is_seen(misbehave):
    expected = {name: says for name, (_, says) in BEHAVIOUR.items() if isinstance(says, str)}
    code, said = misbehave(*expected)
    assert code == 0, said
    for (name, says), problem in zip(expected.items(), json.loads(said), strict=True):
        assert (says in problem) if says else not problem, f"{name}: {problem!r}"


@pytest.mark.parametrize("name", [n for n, (_, says) in BEHAVIOUR.items() if says in (-14, -11)])
def test_what_ends_the_process_is_seen(misbehave, name):
    code, said = misbehave(name)
    assert code == BEHAVIOUR[name][1], said
    assert "bad_reader.py" in said  # Where it happened.
