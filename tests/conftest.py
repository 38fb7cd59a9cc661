"""What the tests share beyond the configuration of JAX, which stands in the root's conftest.py."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import hypothesis
import hypothesis.configuration
import pytest

ROOT = Path(__file__).resolve().parent.parent

hypothesis.configuration.set_hypothesis_home_dir(
    Path(tempfile.gettempdir()) / "jaxtransfer-hypothesis"
)
hypothesis.settings.register_profile("local", deadline=None, max_examples=50, database=None)
hypothesis.settings.register_profile(
    "ci", hypothesis.settings.get_profile("local"), derandomize=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests that take very long out unless `-m` asks for them."""
    asked = config.getoption("markexpr")
    marks = [mark for mark in ("hostile", "peers") if mark not in asked]
    left_out = [item for item in items if any(map(item.get_closest_marker, marks))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real weights and data; whoever asks for it is skipped where it is absent."""
    named = os.environ.get("JAXTRANSFER_REAL_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            f"no real weights and data at {folder}: name their folder in JAXTRANSFER_REAL_DATA"
        )
    return folder
