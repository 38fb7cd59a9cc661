"""Runs that tests carry out whole, in parts, or again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxtransfer.data import ArrayData
from jaxtransfer.models import Model
from jaxtransfer.partition import Group, Plan
from jaxtransfer.train import Checkpoints, Settings, train
from jaxtransfer.train.loop import OnStep
from jaxtransfer.train.settings import run_identity
from jaxtransfer.tree import diff

SETTINGS = Settings(steps=10, batch_size=4, learning_rate=0.01, weight_decay=0.1)
FROZEN = Group("**", frozen=True)
# The second plan freezes what the first one trained: it is in no trainable tree any more.
NARROWING = (
    Plan((Group(("layer3/**", "head/**")), FROZEN), name="wide"),
    Plan((Group("head/**"), FROZEN), name="narrow"),
)


class Stop(Exception):
    """The run is stopped from outside."""


@dataclass(frozen=True)
class Run:
    """One run, to be carried out whole, in parts, or again."""

    model: Model
    data: ArrayData
    plans: tuple[Plan, ...]
    settings: Settings = SETTINGS

    def whole(self) -> tuple[Model, list[dict[str, Any]]]:
        return train(self.model, self.data, self.plans, self.settings)

    def checkpoints(self, folder: Path, **options: Any) -> Checkpoints:
        identity = run_identity(self.model, self.data, self.plans, self.settings)
        return Checkpoints(folder, identity, **options)

    def into(
        self,
        folder: Path,
        *,
        save_every: int = 2,
        on_step: OnStep | None = None,
        **options: Any,
    ) -> tuple[Model, list[dict[str, Any]]]:
        with self.checkpoints(folder, **{"resume": True, **options}) as checkpoints:
            return train(
                self.model,
                self.data,
                self.plans,
                self.settings,
                on_step=on_step,
                checkpoints=checkpoints,
                save_every=save_every,
            )

    def stopped_at(self, step: int, folder: Path, **options: Any) -> None:
        def on_step(number: int, _: Any) -> None:
            if number == step:
                raise Stop

        with pytest.raises(Stop):
            self.into(folder, on_step=on_step, **options)


def assert_same(
    found: tuple[Model, list[dict[str, Any]]], expected: tuple[Model, list[dict[str, Any]]]
) -> None:
    assert diff(expected[0].params, found[0].params).is_empty
    assert diff(expected[0].stats, found[0].stats).is_empty
    assert found[1] == expected[1]


def steps_in(folder: Path) -> list[int]:
    return sorted(int(child.name) for child in folder.iterdir() if child.name.isdigit())


def contents_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Pixels:
    """Images of bytes by number, as a store has them."""

    def __init__(self, images: np.ndarray):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[index]

    def name(self, index: int) -> str:
        return f"image {index}"

    def fingerprint(self) -> str:
        return "pixels"
