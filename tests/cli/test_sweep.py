from __future__ import annotations

import numpy as np
import pytest

from jaxtransfer.cli.sweep import _held_out
from jaxtransfer.data import ArrayData


@pytest.mark.parametrize(("counts", "expected"), [((2, 3), 1), ((3, 3), 1), ((10, 20), 2)])
def test_each_class_has_an_example_to_compare_by(counts: tuple[int, int], expected: int) -> None:
    labels = np.repeat(np.arange(2), counts)
    train, held_out = _held_out(ArrayData(np.zeros((len(labels), 1, 1, 1)), labels, None))
    assert np.bincount(held_out.labels).min() == expected
    total = np.bincount(train.labels) + np.bincount(held_out.labels)
    assert total.tolist() == list(counts) and np.bincount(train.labels).min() >= 1
