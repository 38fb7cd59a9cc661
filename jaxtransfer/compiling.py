"""How the package's own programs are compiled: for CPUs with options that make networks fast.

XLA gives what it can to libraries. Since JAX 0.10 it gives convolutions on CPUs to one, YNNPACK,
that takes up to six times as long for the gradient by a kernel as the code that it replaces, and on
JAX 0.10 up to 1.7 times as long for forward passes. Products and sums stay with it. And XLA orders
a program for what can run at once; ordered for memory, a training step of ResNet-50 needs two
thirds of it and one of VGG-16 half. With an analysis of when values live it need not copy what a
step replaces, such as the moments of an optimizer. Memory is time, too: pages that a step gives
back to the system must be cleared for the next. `python3 -m benchmarks --only step` measures the
whole of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.core import Tracer
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from jaxtransfer.formats.output import make_folder

LONG_SECONDS = 1.0
"""What takes longer to compile leaves so much memory behind that giving it back is worth it."""

_OPTIONS = {
    "cpu": {
        "xla_cpu_experimental_ynn_fusion_type": (
            "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
        ),
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
        "xla_cpu_copy_insertion_use_region_analysis": "True",
    }
}
# A program that runs once is not worth what takes the compiler long.
_QUICKLY = {"cpu": {"xla_backend_optimization_level": "1"}}


def compiler_options() -> dict[str, str]:
    """What `jax.jit` should be given as `compiler_options` for networks on the default device.

    Nothing on GPUs and TPUs, where the compiler does not know the options, and nothing that
    `XLA_FLAGS` says itself.

    Example:
        `jax.jit(forward, compiler_options=jt.compiler_options())`
    """
    return _chosen_options(_OPTIONS)


def _chosen_options(of_backends: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The options for the default device that its compiler knows and `XLA_FLAGS` leaves open."""
    flags = os.environ.get("XLA_FLAGS", "")
    options = of_backends.get(jax.default_backend(), {})
    return {
        name: value
        for name, value in options.items()
        if name not in flags and _is_known(name, value)
    }


@functools.cache
def _is_known(name: str, value: str) -> bool:
    """Whether this version of the compiler has the option: some are named experimental."""
    try:
        jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def compilation_cache(folder: str | os.PathLike[str]) -> Path:
    """What is compiled from here on is kept in a folder, where later processes find it.

    A file belongs to a program, the versions of JAX and its compiler, the options and the kind of
    device: what does not fit is compiled anew. Nothing is ever removed from the folder. Files hold
    code that runs as it is, so nobody else should be able to write there.

    Source: https://docs.jax.dev/en/latest/persistent_compilation_cache.html, with no program too
    small or too quick to compile.

    Args:
        folder: where; it is made if it is not there, and only its owner may then enter it.

    Returns:
        The folder, as an absolute path.

    Raises:
        OutputError: the folder cannot be made, or nothing can be written in it.

    Example:
        `jt.compilation_cache("~/.cache/jaxtransfer")` before the first model is loaded.
    """
    path = Path(folder).expanduser().absolute()
    is_new = not path.exists()
    make_folder(path)
    if is_new:
        path.chmod(0o700)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    reset_cache()  # JAX looks once whether there is a folder
    return path


class Program:
    """A function jitted with `compiler_options`; inside of other transformations without.

    JAX takes options of the outermost program alone. What the compiler needed to compile it the
    first time is given back to the system before it runs: hundreds of MiB for a network.
    """

    def __init__(self, function: Callable[..., Any], quickly: bool = False, **how: Any) -> None:
        self._jit = functools.partial(jax.jit, function, **how)
        self._quickly = quickly
        self._jitted: dict[bool, Any] = {}
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """What the function returns."""
        is_first = not self._jitted
        program = self._chosen(arguments, named)
        if is_first and False in self._jitted:
            begun = time.perf_counter()
            program.lower(*arguments, **named).compile()  # which the call below finds
            if time.perf_counter() - begun > LONG_SECONDS:
                _give_back_memory()
        return program(*arguments, **named)

    def lower(self, *arguments: Any, **named: Any) -> Any:
        """As `jax.jit(…).lower`."""
        return self._chosen(arguments, named).lower(*arguments, **named)

    def _chosen(self, *arguments: Any) -> Any:
        is_inside = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(arguments))
        if is_inside not in self._jitted:
            options = {} if is_inside else self.options()
            self._jitted[is_inside] = self._jit(compiler_options=options or None)
        return self._jitted[is_inside]

    def options(self) -> dict[str, str]:
        """What it is compiled with where it is called by itself."""
        return compiler_options() | (_chosen_options(_QUICKLY) if self._quickly else {})


def _give_back_memory() -> None:
    """Let the C library give back to the system what lies unused, where it is glibc."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def jit(function: Callable[..., Any], *, quickly: bool = False, **how: Any) -> Program:
    """`jax.jit(function, **how)`, compiled with `compiler_options` where it is called by itself.

    With `quickly` on CPUs at the compiler's lowest level that optimises: for what runs once.
    """
    return Program(function, quickly, **how)
