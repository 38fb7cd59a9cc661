"""The embedded source model keeps what its card and the README promise."""

import re

import jax
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.data import glyphs
from jaxtransfer.evaluate.curves import summarise_curve
from jaxtransfer.evaluate.metrics import accuracy, binomial_interval
from jaxtransfer.formats import sha256_of
from jaxtransfer.hub import resolve
from jaxtransfer.tree import count_parameters


@pytest.fixture(scope="module")
def model():
    return jt.load("checkpoints/glyphs")


@pytest.fixture(scope="module")
def card():
    return (resolve("checkpoints/glyphs") / "README.md").read_text()


def test_it_is_small_and_verified(model):
    weights = resolve("checkpoints/glyphs") / "model.safetensors"
    assert weights.stat().st_size < 2 * 2**20
    assert len(model.receipt.entries) == len(jax.tree.leaves((model.params, model.stats)))
    assert model.labels == glyphs.CLASSES
    assert model.receipt.sha256 == sha256_of(weights)


def test_the_card_tells_the_facts(model, card):
    assert model.receipt.sha256 in card
    assert f"{count_parameters(model.params):,} parameters" in card
    assert all(font in card for font in glyphs.HELD_OUT_FONTS)
    assert "jaxtransfer pretrain --architecture" in card


def test_the_held_out_accuracy_is_the_cards(model, card):
    claimed = float(re.search(r"held-out fonts\*\*: ([\d.]+) %", card)[1])
    masks = glyphs.load_glyphs(glyphs.HELD_OUT_FONTS)
    images, labels = glyphs.draw(jax.random.key(1), masks, 2000)
    correct = int((jt.predict(model, np.asarray(images)).argmax(-1) == np.asarray(labels)).sum())
    interval = binomial_interval(correct, 2000)
    assert interval.low <= claimed / 100 <= interval.high


def test_digits_are_recognised_before_any_training(model):
    digits = jt.load_digits()
    start = jt.replace_head(model, classes=digits.classes)
    assert accuracy(jt.predict(start, digits.images), digits.labels) > 0.7
    fresh = jt.replace_head(model, classes=digits.classes, reuse=False)
    assert accuracy(jt.predict(fresh, digits.images), digits.labels) < 0.4


@pytest.mark.slow
def test_transfer_is_worth_having_on_every_one_of_five_seeds():
    comparison = jt.compare(seeds=5, arms=("scratch", "probe", "lp_ft"))

    def ends(name: str) -> np.ndarray:
        curves = comparison.arms[name].curves
        return np.array([summarise_curve(comparison.evaluated_at, c).asymptote for c in curves])

    assert (ends("lp_ft") - ends("scratch")).min() >= 0.08
    assert (ends("probe") - ends("scratch")).min() > 0
    assert comparison.verdict.startswith("Transfer helped: lp_ft ends")
