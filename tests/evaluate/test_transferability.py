from __future__ import annotations

import json
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import DataError, ModelError
from jaxtransfer.evaluate import transferability
from jaxtransfer.evaluate.copied_stages import random_network
from jaxtransfer.evaluate.layerwise import TREATMENTS
from jaxtransfer.evaluate.metrics import accuracy
from jaxtransfer.evaluate.transferability import transferability_by_layer
from jaxtransfer.models.stages import StagedNetwork
from jaxtransfer.tree import flatten

SETTINGS = jt.Settings(steps=12, batch_size=16, learning_rate=0.03)


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Dense(6, name="dense")(x)
        return nn.tanh(nn.BatchNorm(momentum=0.9, name="bn")(x, use_running_average=not train))


class Network(StagedNetwork):
    """Two dense stages with BatchNorm, one without parameters between them, and a head."""

    classes: int = 2

    @property
    def stages(self) -> tuple[str, ...]:
        return ("stem", "pool", "body", "head")

    def _run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        if stage == "pool":
            return x * jnp.float32(1.5)
        if stage == "head":
            return nn.Dense(self.classes, name="head")(x)
        return Normalised(name=stage)(x, train=train)


def initialise(seed):
    variables = Network().init(jax.random.key(seed), jnp.ones((1, 4)), train=False)
    return jt.Model.from_linen(Network(), variables, stages=Network().stages)


@pytest.fixture(scope="module")
def model():
    return initialise(0)


def examples(seed: int, names=tuple("abcd")) -> tuple[jt.ArrayData, jt.ArrayData]:
    """Four noisy points and their names, to train on and to test on."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(120) % len(names)).astype(np.int32)
    noise = 0.6 * rng.normal(size=(120, 4))
    data = jt.ArrayData((2 * np.eye(4)[labels] + noise).astype(np.float32), labels, names)
    return data.take(np.arange(80)), data.take(np.arange(80, 120))


@pytest.fixture(scope="module")
def runs():
    """What was trained: name, start, data, plan, settings, and what came out of it."""
    return []


@pytest.fixture(scope="module")
def found(model, runs):
    """The whole experiment for two seeds, with a note of each training."""
    real = transferability.train

    def noted(start, data, plans, settings):
        trained, history = real(start, data, plans, settings)
        runs.append((start, data, plans[0], settings, trained))
        return trained, history

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transferability, "train", noted)
        return transferability_by_layer(
            model, examples(0), settings=SETTINGS, seeds=(4, 7), initialise=initialise
        )


def untrained(model, data, plans, settings):
    """In the place of training, where only what goes into it counts."""
    return model, []


def test_stages_without_parameters_do_not_count(found):
    assert found.stages == ("stem", "body", "head")
    assert found.depths == (1, 2) and found.seeds == (4, 7)
    assert set(found.accuracies) == {"BnB", "BnB+", "AnB", "AnB+"}
    for rows in found.accuracies.values():
        assert [len(row) for row in rows] == [2, 2]
    assert len(found.base) == 2 and min(found.base) > 0.5


def test_every_network_is_trained_once_in_order(runs, found):
    del found
    plans = [plan.name for _, _, plan, _, _ in runs]
    a_depth = ["freeze_until({})", "freeze_until({})", "full", "full"] * 2
    assert plans[:4] == ["full"] * 4  # baseA and baseB for each of two seeds
    assert len(plans) == 4 + 2 * 2 * len(TREATMENTS)
    assert sorted(plans[4:12]) == sorted(name.format("body") for name in a_depth)
    assert sorted(plans[12:]) == sorted(name.format("head") for name in a_depth)


def test_frozen_stages_and_their_statistics_stay_those_of_the_base_to_the_bit(runs, found):
    del found
    bases = {"A": runs[0][4], "B": runs[1][4]}
    for depth, first in ((1, 4), (2, 12)):
        for name, (start, _, plan, _, trained) in zip(TREATMENTS, runs[first::2], strict=False):
            base = bases[name[0]]
            for stage in ("stem", "body")[:depth]:
                for tree in ("params", "stats"):
                    copied = flatten(getattr(base, tree)[stage])
                    before = flatten(getattr(start, tree)[stage])
                    after = flatten(getattr(trained, tree)[stage])
                    is_frozen = plan.name != "full"
                    for leaf, value in copied.items():
                        np.testing.assert_array_equal(before[leaf], value)
                        assert np.array_equal(after[leaf], value) == is_frozen
            kernels = (m.params["head"]["kernel"] for m in (start, trained, base))
            new, learnt, old = map(np.asarray, kernels)
            assert not np.array_equal(new, learnt) and not np.array_equal(new, old)


def test_networks_of_a_depth_and_seed_share_random_weights_and_the_order_of_examples(runs, found):
    del found
    for first, stage in ((4, "body"), (12, "head")):
        for seed in (0, 1):
            group = runs[first + seed : first + 8 : 2]
            tops = [flatten(start.params[stage]) for start, *_ in group]
            assert all(np.array_equal(top[leaf], tops[0][leaf]) for top in tops for leaf in tops[0])
            assert len({settings.seed for _, _, _, settings, _ in group}) == 1
    seeds = [settings.seed for _, _, _, settings, _ in runs]
    assert len(set(seeds)) == 4 + 2 * 2  # the bases, and each depth of each seed


def test_accuracies_are_those_of_the_trained_networks_on_b(runs, found):
    b_tests = [jt.split_classes(*examples(0), seed=seed)[1][1] for seed in (4, 7)]
    for name, first in zip(TREATMENTS, range(12, 20, 2), strict=True):
        expected = [
            accuracy(jt.predict(runs[first + i][4], b_tests[i]), b_tests[i].labels) for i in (0, 1)
        ]
        assert found.accuracies[name][1] == tuple(expected)


def test_each_seed_divides_the_classes_anew(runs, found):
    for i, seed in enumerate((4, 7)):
        (a, _), (b, _) = jt.split_classes(*examples(0), seed=seed)
        assert found.classes[i] == {"A": a.classes, "B": b.classes}
        assert runs[2 * i][1].fingerprint() == a.fingerprint()
        assert runs[2 * i + 1][1].fingerprint() == b.fingerprint()


def test_the_same_seeds_give_the_same(model, found, monkeypatch):
    again = transferability_by_layer(
        model, examples(0), settings=SETTINGS, seeds=(7,), depths=(2,), initialise=initialise
    )
    assert again.base == found.base[1:]
    for name, rows in found.accuracies.items():
        assert again.accuracies[name] == (rows[1][1:],)


def test_the_report_is_json(found):
    report = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert report["treatments"]["AnB"][1]["accuracies"] == list(found.accuracies["AnB"][1])
    assert report["classes"][0]["A"] == list(found.classes[0]["A"])
    assert report["settings"]["steps"] == 12 and report["seeds"] == [4, 7]


def test_stages_of_trained_models_are_told_apart_by_nothing_but_their_origin(model, monkeypatch):
    monkeypatch.setattr(transferability, "train", untrained)
    data = examples(1, names=("a", "b"))
    other = replace(model, params=jax.tree.map(lambda x: x + 1, model.params))
    counted = []
    common = {"settings": SETTINGS, "initialise": initialise, "seeds": 2}
    same = transferability_by_layer(
        model,
        data,
        model,
        base=model,
        on_progress=lambda *seen: counted.append(seen),
        **common,
    )
    assert same.accuracies["AnB"] == same.accuracies["BnB"] == same.accuracies["AnB+"]
    assert same.base == (accuracy(jt.predict(model, data[1]), data[1].labels),) * 2
    assert [done for _, done, _ in counted] == [12 * (i + 1) for i in range(16)]
    assert counted[0] == ("B1B, seed 0", 12, 192) and counted[-1][0] == "A2B+, seed 1"
    apart = transferability_by_layer(model, data, other, base=model, **common)
    assert apart.accuracies["BnB"] == same.accuracies["BnB"]
    # Untrained, the network has A's stages below and the same new head above.
    fresh = random_network(model, data[0], transferability._seed(0, 2, 2), initialise)
    mixed = replace(fresh, params={**other.params, "head": fresh.params["head"]})
    expected = accuracy(jt.predict(mixed, data[1]), data[1].labels)
    assert apart.accuracies["AnB"][1][0] == expected
    assert apart.classes == ({"A": None, "B": ("a", "b")},) * 2


def test_a_schedule_of_ones_own_is_reported_by_its_name(model, monkeypatch):
    def falling(steps):
        return lambda step: 1 - step / steps

    monkeypatch.setattr(transferability, "train", untrained)
    settings = replace(SETTINGS, schedule=falling)
    options = {"settings": settings, "seeds": 1, "depths": (1,), "initialise": initialise}
    found = transferability_by_layer(model, examples(0), **options)
    report = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert report["settings"]["schedule"] == "falling"


def test_two_tasks_may_have_different_numbers_of_classes(model, monkeypatch):
    monkeypatch.setattr(transferability, "train", untrained)
    progress = []
    found = transferability_by_layer(
        model,
        examples(1, names=("a", "b")),
        examples(2),
        settings=SETTINGS,
        seeds=1,
        depths=(2,),
        initialise=initialise,
        on_progress=lambda what, done, steps: progress.append(what),
    )
    assert progress[:2] == ["baseA, seed 0", "baseB, seed 0"]
    assert found.classes == ({"A": tuple("abcd"), "B": ("a", "b")},)
    assert found.depths == (2,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (0, 3)}, r"depths from 1 to 2 of the stages stem, body, head, found \(0, 3\)"),
        ({"seeds": (1, 1)}, "at least one seed, none twice"),
        ({"seeds": 0}, "at least one seed"),
        ({"base": True}, "source= beside base="),
        ({"initialise": None}, "found 'Network' without"),
        ({"source": jt.init("glyph_resnet8", width=4)}, "a trained model of the same network"),
    ],
)
def test_what_cannot_be_carried_out_is_told_before_anything_is_trained(
    model, options, message, monkeypatch
):
    monkeypatch.delattr(transferability, "train")
    if options.get("base"):
        options = {"base": model}
    options = {"initialise": initialise, "settings": SETTINGS, **options}
    with pytest.raises(ModelError, match=message):
        transferability_by_layer(model, examples(0), **options)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ((examples(0)[0], examples(1, names=tuple("dcba"))[1]), "the same classes to train"),
        ((replace(examples(0)[0], labels=np.zeros(80, np.float32)),) * 2, "found float32"),
    ],
)
def test_tasks_without_classes_in_common_are_refused(model, target, message):
    options = {"settings": SETTINGS, "initialise": initialise}
    with pytest.raises(DataError, match=message):
        transferability_by_layer(model, target, model, **options)
