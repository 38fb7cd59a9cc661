"""How far up a network do features transfer? Leading stages are copied, the others learn anew.

Source: Yosinski et al. 2014, "How transferable are features in deep neural networks?" (arXiv
1411.1792), section 2 and figures 1 and 2. Of a network that was trained on task A or on task B, the
first n stages are copied; what is above them is random again and learns task B. All accuracies are
on task B:

    baseB   trained on B from random weights
    BnB     n stages from baseB, frozen: less than baseB where stages had adapted to each other in a
            way that cannot be found again (fragile co-adaptation)
    BnB+    n stages from baseB, which train too
    AnB     n stages from baseA, frozen: what is below BnB is how specific they are to A
    AnB+    n stages from baseA, which train too
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from jaxtransfer.data import Data, split_classes
from jaxtransfer.errors import DataError, ModelError
from jaxtransfer.evaluate.arms import Initialise
from jaxtransfer.evaluate.copied_stages import (
    check_same_network,
    copy_stages,
    random_network,
    treatment_plan,
)
from jaxtransfer.evaluate.environment import environment
from jaxtransfer.evaluate.layerwise import BASE, TREATMENTS, Transferability, Treatment
from jaxtransfer.evaluate.metrics import accuracy
from jaxtransfer.evaluate.predict import predict
from jaxtransfer.evaluate.runs import OnProgress
from jaxtransfer.models import Model
from jaxtransfer.partition import Plan, full
from jaxtransfer.partition.stages import stages_with_parameters
from jaxtransfer.surgery import has_head
from jaxtransfer.train import Settings, train


class Task(NamedTuple):
    """Labelled examples of the same classes, to train on and to test on."""

    train: Data
    test: Data


def transferability_by_layer(
    model: Model,
    target: Task | tuple[Data, Data],
    source: Task | tuple[Data, Data] | Model | None = None,
    *,
    settings: Settings,
    base: Model | None = None,
    seeds: int | Sequence[int] = 3,
    depths: Sequence[int] | None = None,
    initialise: Initialise | None = None,
    on_progress: OnProgress | None = None,
) -> Transferability:
    """Copy the first n stages of networks trained on A and on B, and train the others on B.

    This is the experiment of Yosinski et al. 2014, as the module's description says, for any
    network of stages. Stages without parameters, such as a pooling, do not count. Frozen stages
    keep their running statistics, too. All networks of a depth and seed begin with the same random
    weights above the copied ones and see the examples of B in the same order, so that their
    accuracies can be compared in pairs. A run has as many steps as that of its base.

    Args:
        model: the network; its weights are not looked at, but where one of the bases is it.
        target: task B, a training and a test part.
        source: task A, or a model that was trained on it. With `None` the classes of `target` are
            divided anew for each seed, as `jt.split_classes` does, and B is the second half.
        settings: how each network is trained; `seed` is replaced by one for each run.
        base: a model that was trained on B; by default one is trained for each seed.
        seeds: how many seeds, or which, from 0.
        depths: which numbers of copied stages; by default 1 and all above, up to those before the
            head.
        initialise: from a seed to the network with random weights, as for `compare`; networks of
            the catalog need none.
        on_progress: called after each training with what was trained, the training steps done, and
            their number in all.

    Returns:
        All accuracies on B, with means, intervals and a table.

    Raises:
        DataError: labels are no classes, or a task's parts have different ones.
        ModelError: the network has random weights that nobody described, `depths` or `seeds` are
            out of range, a trained model is another network, or there is a `base` for classes that
            are yet to be divided.

    Example:
        `print(jt.transferability_by_layer(model, (train, test), settings=settings).table())`
    """
    seeds = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    stages = stages_with_parameters(model)
    depths = tuple(range(1, len(stages))) if depths is None else tuple(sorted(set(depths)))
    _check(model, stages, seeds, depths, source, base)
    tasks = {seed: _tasks(Task(*target), source, seed) for seed in seeds}
    trainings = len(seeds) * (
        (not isinstance(source, Model)) + (base is None) + len(depths) * len(TREATMENTS)
    )
    run = _Experiment(model, settings, initialise, trainings * settings.steps, on_progress)
    bases = {seed: run.bases(seed, *tasks[seed], source, base) for seed in seeds}
    accuracies: dict[str, list[tuple[float, ...]]] = {name: [] for name in TREATMENTS}
    for depth in depths:
        for name, treatment in TREATMENTS.items():
            runs = [run.treat(treatment, depth, s, tasks[s][1], bases[s]) for s in seeds]
            accuracies[name].append(tuple(runs))
    return Transferability(
        network=model.spec.name,
        stages=stages,
        depths=depths,
        seeds=seeds,
        base=tuple(accuracy_on(bases[seed].target, tasks[seed][1].test) for seed in seeds),
        accuracies={name: tuple(rows) for name, rows in accuracies.items()},
        classes=tuple(_class_lists(*tasks[seed]) for seed in seeds),
        settings={name: _plain(getattr(settings, name)) for name in _REPORTED},
        environment=environment(),
    )


_REPORTED = ("steps", "batch_size", "learning_rate", "weight_decay", "optimizer", "schedule")


def _plain(value: Any) -> Any:
    """A setting as JSON can hold it: of a schedule of one's own its name."""
    return getattr(value, "__name__", type(value).__name__) if callable(value) else value


class Bases(NamedTuple):
    """Networks that were trained on A and on B."""

    source: Model
    target: Model


@dataclass
class _Experiment:
    """What all runs share, and how far they have come."""

    model: Model
    settings: Settings
    initialise: Initialise | None
    steps: int
    on_progress: OnProgress | None
    done: int = 0

    def bases(
        self, seed: int, source: Task | None, target: Task, given: Any, base: Model | None
    ) -> Bases:
        """The two trained networks of a seed, those that were given as they are."""
        if source is None:
            trained = given
        else:
            start = random_network(self.model, source.train, _seed(seed, 0), self.initialise)
            trained = self._train("baseA", start, source, full(start), seed, _seed(seed, 0))
        if base is None:
            start = random_network(self.model, target.train, _seed(seed, 1), self.initialise)
            base = self._train(BASE, start, target, full(start), seed, _seed(seed, 1))
        return Bases(trained, base)

    def treat(self, treatment: Treatment, depth: int, seed: int, task: Task, bases: Bases) -> float:
        """The accuracy on B of one network after its training."""
        own = _seed(seed, 2, depth)
        fresh = random_network(self.model, task.train, own, self.initialise)
        origin = bases.source if treatment.from_source else bases.target
        start = copy_stages(origin, fresh, depth)
        plan = treatment_plan(start, depth, treatment.fine_tuned)
        name = f"{treatment.name(depth)}, seed {seed}"
        return accuracy_on(self._train(name, start, task, plan, seed, own), task.test)

    def _train(self, name: str, start: Model, task: Task, plan: Plan, seed: int, own: int) -> Model:
        trained, _ = train(start, task.train, [plan], replace(self.settings, seed=own))
        self.done += self.settings.steps
        if self.on_progress is not None:
            what = name if "seed" in name else f"{name}, seed {seed}"
            self.on_progress(what, self.done, self.steps)
        return trained


def accuracy_on(model: Model, data: Data) -> float:
    """The share of examples that a model classifies rightly."""
    return accuracy(predict(model, data), np.asarray(data.labels))


def _seed(*place: int) -> int:
    """A seed for one network that has nothing to do with those of others."""
    return int(np.random.SeedSequence(place).generate_state(1)[0]) >> 1


def _tasks(target: Task, source: Any, seed: int) -> tuple[Task | None, Task]:
    """A, `None` where there is a model for it, and B."""
    if source is None:
        a, b = split_classes(*target, seed=seed)
        tasks = Task(*a), Task(*b)
    else:
        tasks = None if isinstance(source, Model) else Task(*source), target
    for task in filter(None, tasks):
        for part in task:
            labels = np.asarray(part.labels)
            if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
                raise DataError(
                    "transferability_by_layer: expected at least one example and labels that are "
                    f"classes, integers of shape (count,), found {labels.dtype} of {labels.shape}"
                )
        if task.train.classes != task.test.classes:
            raise DataError(
                "transferability_by_layer: expected the same classes to train and to test on, "
                f"found {task.train.classes} and {task.test.classes}"
            )
    return tasks


def _class_lists(source: Task | None, target: Task) -> Mapping[str, tuple[str, ...] | None]:
    return {"A": None if source is None else source.train.classes, "B": target.train.classes}


def _check(
    model: Model,
    stages: tuple[str, ...],
    seeds: tuple[int, ...],
    depths: tuple[int, ...],
    source: Any,
    base: Model | None,
) -> None:
    """Raise unless the experiment can be carried out; all problems at once.

    Raises:
        ModelError: it cannot.
    """
    problems = []
    if not has_head(model):
        problems.append("a network with a head, found none; replace_head puts one in place")
    if not depths or not set(depths) <= set(range(1, len(stages))):
        names = ", ".join(stages)
        problems.append(f"depths from 1 to {len(stages) - 1} of the stages {names}, found {depths}")
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        problems.append(f"at least one seed, none twice, none below 0, found {seeds}")
    if source is None and base is not None:
        problems.append("source= beside base=, since the classes of a trained base are settled")
    if problems:
        raise ModelError("\n - ".join(["transferability_by_layer: expected", *problems]))
    for trained in (source, base):
        if isinstance(trained, Model):
            check_same_network(model, trained, "a trained model of the same network", stages[:-1])
