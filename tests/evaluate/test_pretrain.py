import json
from dataclasses import replace

import jax
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.data import glyphs
from jaxtransfer.errors import SourceModelError
from jaxtransfer.evaluate.metrics import binomial_interval
from jaxtransfer.evaluate.pretrain import Recipe, pretrain, require_better_than_naive

TINY = Recipe(width=8, steps=40, batch_size=32, learning_rate=2e-2)


@pytest.fixture(scope="module")
def source():
    return pretrain(TINY)


def test_a_little_training_beats_the_naive_classifier_on_unseen_fonts(source):
    assert source.held_out.low > source.naive
    assert source.model.labels == glyphs.CLASSES
    assert "40 steps of 32" in source.model.receipt.notes[-1]


def test_one_seed_gives_one_model(source):
    assert jt.diff(pretrain(TINY).model.params, source.model.params).is_empty
    other = pretrain(replace(TINY, seed=1)).model.params
    assert jt.diff(other, source.model.params).changed


def test_the_loss_is_reported_for_each_step():
    seen = []
    pretrain(TINY, on_step=lambda number, loss: seen.append((number, loss)))
    assert [number for number, _ in seen] == list(range(1, 41))
    assert all(np.isfinite(loss) for _, loss in seen)


def test_an_untrained_network_is_refused():
    with pytest.raises(SourceModelError, match="nothing was written"):
        pretrain(replace(TINY, steps=1, learning_rate=1e-6))


@pytest.mark.parametrize(("correct", "is_refused"), [(30, True), (33, True), (36, False)])
def test_the_lower_end_of_the_interval_decides(correct, is_refused):
    held_out, naive = binomial_interval(correct, 100), 0.23
    assert (held_out.low <= naive) is is_refused
    if is_refused:
        with pytest.raises(SourceModelError, match="naive classifier's 0.2300"):
            require_better_than_naive(held_out, naive)
    else:
        require_better_than_naive(held_out, naive)


def test_the_saved_source_has_a_card_with_its_facts(source, tmp_path):
    folder = source.save(tmp_path / "source")
    card = (folder / "README.md").read_text()
    sha256 = json.loads((folder / "config.json").read_text())["sha256"]
    for fact in (
        sha256,
        "--steps 40",
        f"{100 * source.held_out.mean:.1f} %",
        *glyphs.HELD_OUT_FONTS,
        "Limits",
    ):
        assert fact in card
    loaded = jt.load(folder)
    assert jt.diff(loaded.params, source.model.params).is_empty
    images, _ = glyphs.draw(jax.random.key(0), glyphs.load_glyphs(glyphs.HELD_OUT_FONTS), 8)
    images = np.asarray(images)
    np.testing.assert_array_equal(jt.predict(loaded, images), jt.predict(source.model, images))
