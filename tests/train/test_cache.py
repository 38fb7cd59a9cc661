from __future__ import annotations

from pathlib import Path

import pytest

from jaxtransfer.data import ArrayData
from jaxtransfer.data.augment import HorizontalFlip
from jaxtransfer.errors import CheckpointError
from jaxtransfer.models import Model
from jaxtransfer.train import Cache
from tests.train.tuning import tune


def test_a_cache_that_changes_no_number_is_no_part_of_a_run() -> None:
    assert Cache().identity(augments=True) == Cache(where="host").identity(augments=False) == {}
    assert Cache(views=2).identity(augments=False) == {}
    assert Cache(views=2).identity(augments=True) == {"cache": "2 views, float32"}
    assert Cache(dtype="int8").identity(augments=False) == {"cache": "1 views, int8"}


def test_views_are_not_resumed_without_them(
    network: Model, examples: ArrayData, tmp_path: Path
) -> None:
    options = {"augment": HorizontalFlip(), "checkpoint_folder": tmp_path, "progress": False}
    tune(network, "probe", examples, cache=Cache(views=2), steps=2, **options)
    with pytest.raises(CheckpointError, match='cache: null, found "2 views, float32"'):
        tune(network, "probe", examples, steps=2, resume=True, **options)
