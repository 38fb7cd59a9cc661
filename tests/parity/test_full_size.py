"""Networks at their real sizes against those of other libraries, by their outputs.

The libraries stand in an environment of their own, whose interpreter `JAXTRANSFER_PEERS` names. The
table of docs/models.md is what `python -m pytest -n0 -m peers tests/parity -rP` prints.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxtransfer.formats import write_weights
from jaxtransfer.models.weights import load_network
from jaxtransfer.tree import count_parameters

from .full_size_peer import load_cases

HERE = Path(__file__).resolve().parent

# Of the largest output.
TOLERANCE = 1e-4


@pytest.mark.peers
@pytest.mark.parametrize("name", load_cases())
def test_the_outputs_of_a_whole_network_are_those_of_its_library(name, tmp_path):
    peers = os.environ.get("JAXTRANSFER_PEERS")
    if not peers:
        pytest.skip("needs other libraries: name their interpreter in JAXTRANSFER_PEERS")
    made = tmp_path / "case.npz"
    subprocess.run([peers, HERE / "full_size_peer.py", name, made], check=True)
    with np.load(made) as file:
        about = json.loads(str(file["about"]))
        state = {key.partition("|")[2]: file[key] for key in file.files if key.startswith("state|")}
        image, logits = file["image"], file["logits"]
    write_weights(state, tmp_path / "state.npz")
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in about["options"].items()}
    model = load_network(
        about["architecture"], tmp_path / "state.npz", source=about["source"], **options
    )
    forward = jax.jit(lambda p, s, x: model.apply(p, s, x, train=False)[0])
    found = np.asarray(forward(model.params, model.stats, image))
    assert found.shape == logits.shape
    difference = np.abs(found - logits).max() / np.abs(logits).max()
    count = count_parameters(model.params)
    print(f"| {about['architecture']} | {about['source']} | {count:,} | {difference:.1e} |")
    assert difference <= TOLERANCE
