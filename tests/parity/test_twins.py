"""Networks of the zoo against those of other libraries, stage by stage, with the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.models import Model, build
from jaxtransfer.models.catalog import spec_of

FIXTURES = Path(__file__).resolve().parent / "fixtures"
NAMES = sorted(path.stem for path in FIXTURES.glob("*.npz"))

# Of the largest magnitude in a stage.
TOLERANCE = 1e-4


def read(name: str) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """What a twin is of, and its arrays by group."""
    groups: dict[str, dict[str, np.ndarray]] = {"state": {}, "stages": {}}
    with np.load(FIXTURES / f"{name}.npz") as file:
        about = json.loads(str(file["about"]))
        groups["input"] = {"image": file["image"]}
        for key in file.files:
            group, bar, rest = key.partition("|")
            if bar:
                groups.setdefault(group, {})[rest] = file[key]
    return about, groups


def fill(about: dict[str, Any], state: dict[str, np.ndarray], folder: Path) -> Model:
    """The network here with the twin's weights, through a file and the rules of its source."""
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in about["options"].items()}
    source = spec_of(about["architecture"]).source(about["source"])
    network = build(about["architecture"], **{**source.options, **options})
    jt.write_weights(state, folder / "twin.npz")
    return jt.load_weights(network, folder / "twin.npz", source=about["source"])


def run(model: Model, image: np.ndarray, train: bool) -> tuple[dict[str, Any], Any]:
    """What leaves each stage, and the statistics; compiled as one program."""
    stages = model.spec.stages
    follows = dict(zip(stages, (*stages[1:], None), strict=True))

    @jax.jit
    def forward(params: Any, stats: Any, x: jax.Array) -> tuple[dict[str, jax.Array], Any]:
        found = {}
        for stage in stages:
            # A stage without a successor runs to the end.
            x, stats = model.apply(params, stats, x, train=train, start=stage, stop=follows[stage])
            found[stage] = x
        return found, stats

    return forward(model.params, model.stats, image)


def largest_difference(found: Any, expected: np.ndarray) -> float:
    """The largest difference as a share of the largest magnitude that is expected."""
    found = np.asarray(found)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_is_that_of_the_twin(name, tmp_path):
    about, groups = read(name)
    model = fill(about, groups["state"], tmp_path)
    image = groups["input"]["image"]
    stages, _ = run(model, image, train=False)
    for stage, expected in groups["stages"].items():
        assert largest_difference(stages[stage], expected) <= TOLERANCE, stage
    if not groups.get("trained_stages"):
        return
    trained, stats = run(model, image, train=True)
    for stage, expected in groups["trained_stages"].items():
        assert largest_difference(trained[stage], expected) <= TOLERANCE, f"{stage} in training"
    rules = model.spec.rules_for(about["source"])
    state = {"params": model.params, "stats": stats}
    # Files may have other names than the library's code, and the receipt knows the file's.
    written = {**jt.invert(state, rules), **jt.invert(state, rules, receipt=model.receipt)}
    for tensor, expected in groups.get("trained_state", {}).items():
        assert largest_difference(written[tensor], expected) <= TOLERANCE, tensor
