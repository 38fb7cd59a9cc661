from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtransfer.errors import NonFiniteLossError
from jaxtransfer.train.skipping import check_skipped, keep_unless


def records(skipped: list[bool]) -> list[dict[str, float]]:
    return [
        {"step": step, "skipped": float(left_out), "loss": float("nan"), "gradient_norm": 3.0}
        for step, left_out in enumerate(skipped, start=1)
    ]


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 30), st.integers(1, 5))
def test_counting_in_pieces_is_counting_at_once(skipped: list[bool], cut: int, most: int) -> None:
    text = "".join("x" if left_out else "." for left_out in skipped)
    if "x" * most in text:
        with pytest.raises(NonFiniteLossError):
            check_skipped(records(skipped), max_skipped=most)
        with pytest.raises(NonFiniteLossError):
            row = check_skipped(records(skipped[:cut]), max_skipped=most)
            check_skipped(records(skipped[cut:]), row, max_skipped=most)
    else:
        row = check_skipped(records(skipped[:cut]), max_skipped=most)
        assert check_skipped(records(skipped[cut:]), row, max_skipped=most) == len(text) - len(
            text.rstrip("x")
        )


def test_too_many_in_a_row_end_a_run_and_the_message_says_what_was_found() -> None:
    with pytest.raises(NonFiniteLossError, match=r"step 10: .*loss of nan .* norm of 3, .* 10 ste"):
        check_skipped(records([True] * 12))


def test_what_is_kept_is_the_same_to_the_last_bit() -> None:
    old = {"a": jnp.array([1.0, jnp.nan, -0.0]), "n": jnp.int32(3), "key": jax.random.key(1)}
    new = {"a": jnp.ones(3), "n": jnp.int32(4), "key": jax.random.key(2)}
    for finite, expected in ((True, new), (False, old)):
        found = jax.jit(keep_unless)(jnp.array(finite), new, old)
        assert np.asarray(found["a"]).tobytes() == np.asarray(expected["a"]).tobytes()
        assert found["n"] == expected["n"] and found["key"] == expected["key"]
