"""Make the fixtures of `test_twins.py`: small networks of other libraries with random weights.

A twin is built by torchvision, timm, transformers or Keras with widths and depths cut down, gets
random weights on a coarse grid, which compress well, and runs once in evaluation and once in
training on an image of odd size. Its state dict, the image, what leaves each stage, and the running
statistics after training are kept in one `.npz` file. The libraries are needed here alone:

    python tests/parity/make_twins.py [PATTERN]

where PATTERN is a glob over the names of twins; without it all are made anew. Each module of
`twins/` has a dict `TWINS` from the twin's name to a function of no arguments that gives a `Twin`.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
FIXTURES = HERE / "fixtures"
LARGEST = 300_000

sys.path.insert(0, str(HERE))


@dataclass
class Twin:
    """A network of another library, and how to build the same one here.

    Attributes:
        architecture: the name in the catalog of jaxtransfer.
        source: the name of the source whose rules translate the state dict.
        options: what `build` gets beside those of the source.
        state: the tensors by name, as the library's files have them.
        image: the input, (batch, height, width, channels).
        stages: what leaves each stage in evaluation, channels last.
        trained_stages: the same in training; empty where both are the same.
        trained_state: the running statistics after one training step, by name.
    """

    architecture: str
    source: str
    state: dict[str, np.ndarray]
    image: np.ndarray
    stages: dict[str, np.ndarray]
    trained_stages: dict[str, np.ndarray] = field(default_factory=dict)
    trained_state: dict[str, np.ndarray] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def grid_values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random values for a tensor, a function of its name: few different ones, so they compress.

    Scales and variances lie around 1, all else around 0 with the deviation of a layer that keeps
    the size of what passes through it.
    """
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    steps = rng.randint(-8, 9, shape) / 8
    last = name.replace(":0", "").replace("/", ".").split(".")[-1]
    is_scale = len(shape) == 1 and last in ("weight", "gamma", "scale")
    if last in ("running_var", "moving_variance", "var") or is_scale:
        return (1 + steps / 4).astype(np.float32)
    if len(shape) < 2:
        return np.asarray(steps / 8, np.float32)
    fan_in = np.prod(shape) / max(shape[0], 1)
    return (steps * 2.0 ** np.round(np.log2(1.6 / np.sqrt(fan_in)))).astype(np.float32)


def calm_values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """`grid_values`, with most of what leaves a BatchNorm above zero.

    Where ReLU cuts half of it off, and nothing leads around it, each layer that normalises by the
    batch makes a small difference larger by about a fifth, in the mean (Yang et al. 2019, arXiv
    1902.08129): after 50 layers, that of rounding can be seen.
    """
    shift = 2 if name.replace(":0", "").endswith(("bn.bias", "beta")) else 0
    return (grid_values(name, shape) + shift).astype(np.float32)


def image_of(height: int, width: int, channels: int = 3, batch: int = 2) -> np.ndarray:
    """Random images on a coarse grid."""
    rng = np.random.RandomState(0)
    return (rng.randint(-16, 17, (batch, height, width, channels)) / 8).astype(np.float32)


def torch_twin(
    architecture: str,
    source: str,
    network: Any,
    image: np.ndarray,
    stages: dict[str, Callable[[Any], Any]],
    *,
    options: dict[str, Any] | None = None,
    rename: Callable[[str], str] = lambda name: name,
    values: Callable[[str, tuple[int, ...]], np.ndarray] = grid_values,
) -> Twin:
    """A twin from a torch module.

    Args:
        architecture: the name in the catalog.
        source: the name of the source.
        network: the module; its weights are replaced.
        image: the input, channels last.
        stages: for each stage in order, a function from what enters it to what leaves it. What is
            handed on is torch's (batch, channels, height, width).
        options: what `build` gets beside those of the source.
        rename: from the module's names to those of the library's files.
        values: from a tensor's name and shape to its values; see `calm_values` for deep networks.
    """
    import torch

    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.from_numpy(values(name, tuple(tensor.shape))))

    def run() -> dict[str, np.ndarray]:
        values, found = torch.from_numpy(image.transpose(0, 3, 1, 2).copy()), {}
        with torch.no_grad():
            for name, stage in stages.items():
                values = stage(values)
                found[name] = channels_last(values.numpy())
        return found

    def state() -> dict[str, np.ndarray]:
        tensors = {rename(name): t.numpy().copy() for name, t in network.state_dict().items()}
        return {name: array for name, array in tensors.items() if name}

    before = state()
    network.eval()
    evaluated = run()
    network.train()
    for module in network.modules():  # what is random has no twin
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trained = run()
    moved = {n: a for n, a in state().items() if "running_" in n}
    same = all(np.array_equal(trained[name], evaluated[name]) for name in evaluated)
    return Twin(
        architecture,
        source,
        before,
        image,
        evaluated,
        {} if same else trained,
        moved,
        options or {},
    )


def channels_last(values: np.ndarray) -> np.ndarray:
    """(batch, channels, height, width) with the channels last; other arrays as they are."""
    return values.transpose(0, 2, 3, 1).copy() if values.ndim == 4 else values


def save(name: str, twin: Twin) -> int:
    """Write a twin; gives the size of the file."""
    groups = {
        "state": twin.state,
        "stages": twin.stages,
        "trained_stages": twin.trained_stages,
        "trained_state": twin.trained_state,
    }
    arrays = {f"{group}|{key}": value for group, of in groups.items() for key, value in of.items()}
    about = {"architecture": twin.architecture, "source": twin.source, "options": twin.options}
    path = FIXTURES / f"{name}.npz"
    np.savez_compressed(path, image=twin.image, about=np.array(json.dumps(about)), **arrays)
    return path.stat().st_size


def load_twins() -> dict[str, Callable[[], Twin]]:
    """All twins of the modules in `twins/`, by name."""
    found: dict[str, Callable[[], Twin]] = {}
    for path in sorted((HERE / "twins").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"twins_{path.stem}", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found |= module.TWINS
    return found


def main() -> None:
    """Make the twins whose names match."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pattern", nargs="?", default="*")
    pattern = parser.parse_args().pattern
    FIXTURES.mkdir(exist_ok=True)
    for name, make in load_twins().items():
        if fnmatch.fnmatch(name, pattern):
            size = save(name, make())
            print(f"{name}: {size / 1000:.0f} kB" + (" TOO LARGE" if size > LARGEST else ""))


if __name__ == "__main__":
    main()
