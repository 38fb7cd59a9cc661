"""The runs of a comparison: one training each, measured on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxtransfer.data import Data
from jaxtransfer.evaluate.arms import Arm, Initialise, start_of_arm, with_head
from jaxtransfer.evaluate.budget import Budget, Search, search_rate
from jaxtransfer.evaluate.cost import RunCost, run_cost
from jaxtransfer.evaluate.curves import ASYMPTOTE_FROM
from jaxtransfer.evaluate.draws import Draw
from jaxtransfer.evaluate.metrics import accuracy
from jaxtransfer.evaluate.predict import predict, predict_with
from jaxtransfer.models import Model
from jaxtransfer.partition import Plan
from jaxtransfer.train import Settings, TrainState, cross_entropy, train
from jaxtransfer.train.loop import OnStep

OnProgress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being done, the number of training steps done, and their number in all; that
grows where a search tries a learning rate beyond its grid."""


@dataclass(frozen=True)
class Run:
    """One run of an arm.

    Attributes:
        curve: test accuracy at each measurement.
        end: for each test example the share of the last fifth's measurements that were right.
        plan: what trained, in order.
        seconds: wall time of the training, without the measurements.
        cost: what it cost, where it was the arm's first run.
    """

    curve: tuple[float, ...]
    end: np.ndarray
    plan: str
    seconds: float
    cost: RunCost | None = None

    def cost_with(self, seconds: Sequence[float]) -> RunCost | None:
        """The cost with the median of these wall times."""
        return None if self.cost is None else replace(self.cost, seconds=float(np.median(seconds)))


class Runner:
    """Carries out runs that share a source, a budget and a target; counts their steps."""

    def __init__(
        self,
        source: Model,
        classes: Sequence[str] | int,
        budget: Budget,
        settings: Mapping[str, Any],
        at: tuple[int, ...],
        initialise: Initialise | None,
        on_progress: OnProgress | None,
    ) -> None:
        self.source, self.classes, self.budget = source, classes, budget
        self.shared, self.at, self.initialise = settings, at, initialise
        self.done, self.total, self.on_progress = 0, 0, on_progress
        # Arms that start alike share what they answer before training.
        self._starts: dict[Any, np.ndarray] = {}
        self._has_cost: set[str] = set()

    @property
    def steps(self) -> int:
        """Training steps of a run."""
        return self.at[-1]

    def expect(self, arms: Iterable[Arm], seeds: int) -> None:
        """Count the steps that these arms will take, extensions of their searches aside."""
        for arm in arms:
            rates = len(self._rates(arm))
            self.total += self.steps * (seeds + (rates if rates > 1 else 0))

    def search(self, name: str, arm: Arm, draw: Draw, seed: int) -> Search:
        """The learning rate of an arm, by validation accuracy."""
        rates = self._rates(arm)

        def score(rate: float) -> float:
            if rate not in rates:  # an extension, which nobody expected
                self.total += self.steps
            first = self.done
            model, plans, settings = self._prepare(arm, rate, seed)
            try:
                tuned = _train(model, draw.train, plans, settings, self._counting(name, None))
            finally:
                self.done = first + self.steps  # also of a run that diverged
            return accuracy(predict(tuned, draw.validation), np.asarray(draw.validation.labels))

        return search_rate(rates, score, self.budget.extensions)

    def run(self, name: str, arm: Arm, draw: Draw, seed: int, rate: float) -> Run:
        """One run at a learning rate, measured on the test examples."""
        model, plans, settings = self._prepare(arm, rate, seed)
        labels = np.asarray(draw.test.labels)
        right = [self._right_at_start(arm, seed, model, draw.test)]
        paused = 0.0
        count = self._counting(name, seed)

        def measure(number: int, state: TrainState) -> None:
            nonlocal paused
            if number in self.at:
                jax.block_until_ready(state.trainable)
                begun = time.perf_counter()
                logits = predict_with(model, state.evaluated_params, state.stats, draw.test)
                right.append(logits.argmax(axis=-1) == labels)
                paused += time.perf_counter() - begun
            count(number, state)

        begun = time.perf_counter()
        _train(model, draw.train, plans, settings, measure)
        seconds = time.perf_counter() - begun - paused
        is_end = np.asarray(self.at) >= ASYMPTOTE_FROM * self.steps
        return Run(
            curve=tuple(float(one.mean()) for one in right),
            end=np.mean(np.array(right)[is_end], axis=0),
            plan=", then ".join(plan.name for plan in plans),
            seconds=seconds,
            cost=self._cost_once(name, model, draw.train, plans, settings),
        )

    def start(self, arm: Arm, seed: int, test: Data, *, reuse: bool) -> float:
        """Test accuracy before training, with known head rows or without."""
        model = with_head(arm.source or self.source, self.classes, seed, reuse=reuse)
        if reuse:
            return float(self._right_at_start(arm, seed, model, test).mean())
        return float(_right(model, test).mean())

    def _rates(self, arm: Arm) -> tuple[float, ...]:
        return arm.learning_rates or self.budget.learning_rates

    def _prepare(
        self, arm: Arm, rate: float, seed: int
    ) -> tuple[Model, tuple[Plan, ...], Settings]:
        model, plans = start_of_arm(arm, self.source, self.classes, seed, self.initialise)
        values = {
            "weight_decay": self.budget.weight_decay,
            "loss": cross_entropy(self.budget.label_smoothing),
            **Arm(settings=self.shared).kept(model),
            **arm.kept(model),
        }
        settings = Settings(
            steps=self.steps,
            batch_size=self.budget.batch_size,
            learning_rate=rate,
            seed=seed,
            **values,
        )
        return model, plans, settings

    def _counting(self, name: str, seed: int | None) -> OnStep:
        what = f"{name}: choosing a learning rate" if seed is None else f"{name}: seed {seed}"

        def count(number: int, state: TrainState) -> None:
            self.done += 1
            if self.on_progress is not None:
                self.on_progress(what, self.done, self.total)

        return count

    def _right_at_start(self, arm: Arm, seed: int, model: Model, test: Data) -> np.ndarray:
        key = (id(arm.source or self.source), arm.from_scratch, seed)
        if key not in self._starts:
            self._starts[key] = _right(model, test)
        return self._starts[key]

    def _cost_once(
        self,
        name: str,
        model: Model,
        data: Data,
        plans: Sequence[Plan],
        settings: Settings,
    ) -> RunCost | None:
        if name in self._has_cost:
            return None
        self._has_cost.add(name)
        return run_cost(model, data, plans, settings)


def _train(
    model: Model, data: Data, plans: Sequence[Plan], settings: Settings, on_step: OnStep
) -> Model:
    """The only place at which a comparison trains."""
    return train(model, data, plans, settings, on_step=on_step)[0]


def _right(model: Model, test: Data) -> np.ndarray:
    return predict(model, test).argmax(axis=-1) == np.asarray(test.labels)
