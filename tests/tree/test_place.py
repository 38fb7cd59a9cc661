from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtransfer.errors import TreeError
from jaxtransfer.formats.base import map_file
from jaxtransfer.tree.place import place

module = sys.modules["jaxtransfer.tree.place"]  # the function has the name of its module

SPECS = [P(), P("data"), P(None, "data"), P("data", "model"), P(("data", "model"))]


@pytest.fixture(scope="module")
def mesh():
    auto = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=auto)


def mapped(tmp_path, shape, dtype=np.float32):
    values = np.arange(np.prod(shape)).astype(dtype).reshape(shape)
    (tmp_path / "values").write_bytes(b"1234567" + values.tobytes())  # not aligned
    return values, map_file(tmp_path / "values")[7:].view(dtype).reshape(shape)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_each_device_gets_its_slice(tmp_path, mesh, spec, transposed):
    values, view = mapped(tmp_path, (16, 8))
    values, view = (values.T, view.T) if transposed else (values, view)
    sharding = NamedSharding(mesh, spec)
    placed = place({"w": view}, sharding)["w"]
    assert placed.sharding == sharding
    np.testing.assert_array_equal(placed, values)
    for shard in placed.addressable_shards:
        np.testing.assert_array_equal(shard.data, values[shard.index])


def test_each_byte_of_a_sharded_leaf_is_copied_once(tmp_path, mesh, monkeypatch):
    values, view = mapped(tmp_path, (16, 8))
    copied = []
    original = module._copy
    monkeypatch.setattr(module, "_copy", lambda part: copied.append(part.size) or original(part))
    place({"w": view}, NamedSharding(mesh, P("data", None)))
    assert copied == [values.size // 2] * 2  # eight devices, two different slices


def test_a_tree_of_shardings_goes_leaf_by_leaf(mesh):
    tree = {"a": np.ones((8, 2), np.float32), "b": [np.ones(4, np.int32)]}
    shardings = {"a": NamedSharding(mesh, P("data")), "b": [NamedSharding(mesh, P())]}
    placed = place(tree, shardings)
    assert jax.tree.map(lambda leaf: leaf.sharding, placed) == shardings
    with pytest.raises(TreeError, match="one sharding or a tree of them"):
        place(tree, {"a": shardings["a"]})


@given(
    st.lists(st.integers(0, 5), max_size=3),
    st.sampled_from([np.float32, np.int8, np.bool_, np.complex64, ml_dtypes.bfloat16]),
)
def test_shapes_dtypes_and_bits_stay(shape, dtype):
    values = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    placed = place([values])[0]
    assert isinstance(placed, jax.Array) and placed.dtype == values.dtype
    assert placed.shape == values.shape
    assert np.asarray(placed).tobytes() == values.tobytes()


def test_what_is_placed_does_not_follow_the_file(tmp_path):
    values, view = mapped(tmp_path, (64, 64))
    placed = place(view)
    with open(tmp_path / "values", "r+b") as file:
        file.write(bytes(1000))
    np.testing.assert_array_equal(placed, values)


def test_the_callers_arrays_stay(tmp_path):
    values = np.ones(100, np.float32)
    placed = place({"w": values})["w"]
    values[:] = 2
    np.testing.assert_array_equal(placed, np.ones(100))


def test_arrays_that_are_on_devices_already_go_where_they_should(mesh):
    sharding = NamedSharding(mesh, P("data"))
    assert place(jnp.ones(8), sharding).sharding == sharding


def test_what_jax_would_cut_is_told_by_name():
    tree = {"a": np.ones(2), "b": np.ones(2, np.int64), "c": "text", "d": np.ones(2, np.float32)}
    with pytest.raises(TreeError) as caught:
        place(tree)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert "a: float64, of which JAX would keep float32" in lines[1]
    assert "b: int64" in lines[2] and "c: expected an array, found str" in lines[3]
    with jax.enable_x64(True):
        assert place({"a": np.ones(2)})["a"].dtype == np.float64
