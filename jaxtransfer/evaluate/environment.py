"""Versions and machine, for reports."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import jax

PACKAGES = ("jaxtransfer", "jax", "jaxlib", "flax", "optax", "numpy")


def environment() -> dict[str, str]:
    """What a result was computed with: versions of packages, and the machine."""
    return {
        **{name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "cpu_count": str(os.cpu_count()),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a clone that is not installed
        return "not installed"
