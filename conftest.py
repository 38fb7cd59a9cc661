"""What tests and doctests share: one JAX on eight virtual CPU devices, strict about dtypes.

Each option is set twice: in the environment, so that a process started by a test behaves alike, and
in `jax.config`, because a plugin may have imported JAX before this file ran.
"""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
_JAX_OPTIONS = {
    "jax_platforms": "cpu",
    "jax_num_cpu_devices": 8,
    "jax_numpy_dtype_promotion": "strict",
    # Compiled programs outlive the run. The processes of one run share the folder: an entry that is
    # read half-written does not decompress, and is compiled anew.
    "jax_compilation_cache_dir": str(
        _CACHE / f"jaxtransfer-tests-{importlib.metadata.version('jax')}"
    ),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for _name in ("jax_platforms", "jax_compilation_cache_dir"):
    _JAX_OPTIONS[_name] = os.environ.get(_name.upper()) or _JAX_OPTIONS[_name]
os.environ.update({name.upper(): str(value) for name, value in _JAX_OPTIONS.items()})
# Tests compile much and compute little: the same programs without LLVM's optimisations, which take
# most of the time of compiling.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ["MPLBACKEND"] = "Agg"

import jax  # noqa: E402  the environment comes first
import matplotlib  # noqa: E402
import pytest  # noqa: E402

for _name, _value in _JAX_OPTIONS.items():
    jax.config.update(_name, _value)
matplotlib.use("Agg")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--every N` keeps each N-th test of a file, for a second run on another interpreter."""
    parser.addoption("--every", type=int, default=1, metavar="N", help="keep each N-th of a file")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what `--every` does not keep."""
    every = config.getoption("every")
    numbers: dict[Path, int] = {}
    kept, left_out = [], []
    for item in items:
        number = numbers.setdefault(item.path, 0)
        numbers[item.path] += 1
        (left_out if number % every else kept).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept
