from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtransfer.train import activations
from jaxtransfer.train.activations import Form, Store, decode, encode, new_file, room, stored_dtype

INT8 = np.dtype(np.int8)


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_integers_are_within_half_a_step_of_each_channel(seed: int, size: float) -> None:
    values = np.random.default_rng(seed).normal(size=(4, 3, 5)).astype(np.float32) * size
    kept, scales, errors = encode(jnp.asarray(values), INT8)
    back = np.asarray(decode(kept, jnp.repeat(scales, 4, axis=0), jnp.float32))
    largest = np.abs(values).max((0, 1))
    # Half of one of the 127 steps from zero to the largest value, and rounding.
    assert np.all(np.abs(values - back) <= largest / 254 * 1.001)
    np.testing.assert_allclose(np.asarray(scales)[0], largest / 127, rtol=1e-6)
    difference = np.abs(values - back)
    expected = [(difference.max((0, 1)) / largest).max(), difference.sum(), np.abs(values).sum()]
    np.testing.assert_allclose(np.asarray(errors), expected, rtol=1e-3)


def test_a_channel_of_zeros_stays_one() -> None:
    kept, scales, errors = encode(jnp.zeros((2, 3)), INT8)
    assert not np.asarray(decode(kept, jnp.repeat(scales, 2, axis=0), jnp.float32)).any()
    assert not np.asarray(errors).any()


def test_what_is_not_finite_does_not_become_finite() -> None:
    values = jnp.array([[jnp.nan, 1.0, jnp.inf], [2.0, 3.0, 4.0]])
    kept, scales, _ = encode(values, INT8)
    back = np.asarray(decode(kept, jnp.repeat(scales, 2, axis=0), jnp.float32))
    assert not np.isfinite(back[0, [0, 2]]).any()
    np.testing.assert_allclose(back[:, 1], [1, 3], rtol=0.01)


@pytest.mark.parametrize(
    ("wanted", "own", "stored"),
    [
        ("float32", "float32", "float32"),
        ("float32", "bfloat16", "bfloat16"),
        ("bfloat16", "float32", "bfloat16"),
        ("bfloat16", "float16", "float16"),
        ("int8", "float16", "int8"),
    ],
)
def test_no_dtype_takes_more_than_the_own(wanted: str, own: str, stored: str) -> None:
    assert stored_dtype(wanted, own) == jnp.dtype(stored)


@pytest.mark.parametrize("place", activations.PLACES)
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8"])
def test_what_is_written_is_read(place: str, stored: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(2, 8, 2, 3)).astype(np.float32)
    form = Form((2, 3), jnp.dtype("float32"), jnp.dtype(stored), count=7, views=2, block=4)
    assert form.stride == 8
    store = Store(form, place, jax.devices()[1], tmp_path / "file" if place == "disk" else None)
    for view in range(2):
        for first in (0, 4):
            store.write(view * 8 + first, jnp.asarray(values[view, first : first + 4]))
    maximal, mean = store.finish()
    rows = np.array([6, 8, 3, 14])
    found = store.read(rows)
    assert found.dtype == jnp.float32
    expected = values.reshape(16, 2, 3)[rows]
    tolerance = {"float32": 0.0, "bfloat16": 2**-8, "int8": 1 / 127}[stored]
    np.testing.assert_allclose(np.asarray(found), expected, atol=3 * tolerance, rtol=0)
    assert (maximal > 0) == (mean > 0) == (stored != "float32") and maximal <= tolerance
    if place == "device" or stored != "float32":
        assert found.devices() == {jax.devices()[1]}
    if place == "disk":
        assert (tmp_path / "file").stat().st_size == 16 * 6 * np.dtype(form.stored).itemsize


@pytest.mark.parametrize(("stored", "size"), [("float32", 4), ("bfloat16", 2), ("int8", 1)])
def test_the_bytes_are_counted(stored: str, size: int) -> None:
    form = Form((2, 3), jnp.dtype("float32"), jnp.dtype(stored), count=7, views=2, block=4)
    scales = 4 * 4 * 3 if stored == "int8" else 0  # four blocks of three channels in float32
    assert form.bytes == 16 * 6 * size + scales


def test_the_file_is_gone_afterwards(tmp_path: Path) -> None:
    with new_file(tmp_path / "new") as file:
        assert file is not None
        file.write_text("here")
    assert list((tmp_path / "new").iterdir()) == []
    with new_file(None) as file:
        assert file is None


def test_the_room_is_a_share_of_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Device:
        def __init__(self, known: Any):
            self.memory_stats = lambda: known

    limit = tmp_path / "memory.max"
    limit.write_text("4000\n")
    monkeypatch.setattr(activations, "CGROUP", limit)
    assert room("device", Device({"bytes_limit": 800})) == 200
    assert room("device", Device(None)) == room("host", Device(None)) == 1000
    limit.write_text("max\n")
    assert room("host", Device(None)) > 1000
    assert room("disk", Device(None)) == 0 < room("disk", Device(None), tmp_path)
