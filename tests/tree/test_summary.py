from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer import tree as jt
from jaxtransfer.tree.summary import as_host_array, format_bytes, format_table


def rows_of(table: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in table.splitlines()[2:]}


def test_counts_in_every_framework(sample: Any) -> None:
    assert jt.count_parameters(sample.tree) == sample.parameters
    assert jt.count_bytes(sample.tree) == sample.bytes


def test_a_row_a_leaf_and_the_total_in_every_framework(sample: Any) -> None:
    rows = rows_of(jt.summary(sample.tree))
    assert list(rows) == [*sample.names, "total"]
    assert rows["total"] == [str(sample.parameters), str(sample.bytes)]
    assert sum(int(row[-1]) for name, row in rows.items() if name != "total") == sample.bytes


def test_a_row_for_each_first_segment(sample: Any) -> None:
    rows = rows_of(jt.summary(sample.tree, depth=1))
    assert list(rows) == [*dict.fromkeys(name.split("/")[0] for name in sample.names), "total"]
    assert rows["total"] == [str(sample.parameters), str(sample.bytes)]


def test_the_halves_of_a_split_add_up(sample: Any) -> None:
    halves = jt.split(sample.tree, sample.head)
    assert sum(map(jt.count_parameters, halves)) == sample.parameters
    assert sum(map(jt.count_bytes, halves)) == sample.bytes
    assert jt.count_parameters(halves[0]) == 10


def test_shapes_weigh_what_their_arrays_would() -> None:
    def make() -> dict[str, jax.Array]:
        return {"w": jnp.zeros((3, 4), jnp.bfloat16), "b": jnp.zeros((), jnp.int8)}

    shapes = jax.eval_shape(make)
    assert jt.count_parameters(shapes) == 13
    assert jt.count_bytes(shapes) == 25
    assert jt.summary(shapes) == jt.summary(make())


def test_the_table_as_a_person_sees_it() -> None:
    tree = {
        "head": {"bias": np.zeros(2, np.float32), "kernel": np.zeros((3, 2), np.float16)},
        "rate": 0.1,
    }
    assert jt.summary(tree).splitlines() == [
        "name         shape  dtype    parameters  bytes",
        "-----------  -----  -------  ----------  -----",
        "head/bias    2      float32           2      8",
        "head/kernel  3×2    float16           6     12",
        "rate                float             0      0",
        "total                                 8     20",
    ]
    assert jt.summary(tree, depth=1).splitlines() == [
        "name   shape     dtype             parameters  bytes",
        "-----  --------  ----------------  ----------  -----",
        "head   2 leaves  float16, float32           8     20",
        "rate             float                      0      0",
        "total                                       8     20",
    ]


def test_an_empty_tree_weighs_nothing() -> None:
    assert jt.count_parameters({}) == jt.count_bytes({"a": None}) == 0
    assert rows_of(jt.summary({})) == {"total": ["0", "0"]}


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**2, "1.0 MiB"),
        (5 * 1024**3 // 2, "2.5 GiB"),
        (1024**4, "1.0 TiB"),
        (4096 * 1024**4, "4096.0 TiB"),
    ],
)
def test_bytes_as_a_person_reads_them(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_a_column_is_aligned_to_the_right_if_all_of_it_are_numbers() -> None:
    table = format_table(["name", "size", "mixed"], [["a", 1, 10], ["bb", 100, "x"]])
    assert table.splitlines() == [
        "name  size  mixed",
        "----  ----  -----",
        "a        1  10",
        "bb     100  x",
    ]
    assert format_table(["name"], []).splitlines() == ["name", "----"]


def test_host_arrays_of_arrays_numbers_and_random_keys() -> None:
    assert as_host_array(jnp.arange(3)).tolist() == [0, 1, 2]
    assert as_host_array(2.5) == np.float64(2.5)
    key = jax.random.key(7)
    np.testing.assert_array_equal(as_host_array(key), np.asarray(jax.random.key_data(key)))
    array = np.ones(2)
    assert as_host_array(array) is array
