"""`jaxtransfer inspect` and `jaxtransfer convert`."""

from __future__ import annotations

import json

import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.cli.main import main
from jaxtransfer.formats import sha256_of
from jaxtransfer.models import build


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A CIFAR ResNet-8 as PyTorch would save it, in a safetensors file."""
    model = jt.init("cifar_resnet8", num_classes=3)
    flat = jt.invert(
        {"params": model.params, "stats": model.stats},
        model.spec.rules_for("pytorch_resnet_cifar10"),
    )
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    flat["bn1.num_batches_tracked"] = np.asarray(3, np.int64)
    jt.write_weights(flat, path, {"note": "a  long\nnote " * 30})
    return path


def test_inspect_shows_tensors_totals_hash_and_network(weights, capsys):
    assert main(["inspect", str(weights)]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert any(line.split() == ["linear.weight", "3×64", "float32", "768"] for line in lines)
    summary = dict(line.split(maxsplit=1) for line in lines if line[:1] not in (" ", ""))
    assert summary["sha256"] == sha256_of(weights)
    assert summary["format"] == "safetensors"
    assert summary["metadata"].startswith("note: a long note") and summary["metadata"].endswith("…")
    assert summary["architecture"].startswith("cifar_resnet8, num_classes=3")
    assert "every tensor fits" in summary["architecture"]
    assert "1 of int64, 1 parameters" in out


def test_inspect_json_is_what_a_program_reads(weights, capsys):
    assert main(["inspect", str(weights), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sha256"] == sha256_of(weights)
    assert found["parameters"] == sum(entry["parameters"] for entry in found["dtypes"].values())
    assert found["guesses"][0]["architecture"] == "cifar_resnet8"
    assert {"name", "shape", "dtype", "bytes"} == set(found["tensors"][0])


def test_inspect_runs_as_it_stands_on_the_embedded_model(capsys):
    assert main(["inspect"]) == 0
    out = capsys.readouterr().out
    assert "params/head/kernel" in out and "safetensors" in out
    assert "glyph_resnet8 (as config.json beside it says)" in out


def test_inspect_of_a_part(tmp_path, capsys):
    jt.write_weights({"ema": {"w": np.ones(2)}, "model": {"w": np.ones(2)}}, tmp_path / "a.npz")
    assert main(["inspect", str(tmp_path / "a.npz"), "--part", "ema"]) == 0
    assert "1, 2 parameters" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "a.npz"), "--part", "emma"]) == 2
    assert "its parts are ema, model" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["npz", "msgpack", "safetensors"])
def test_convert_keeps_names_and_bits(weights, tmp_path, capsys, ending):
    output = tmp_path / f"out.{ending}"
    assert main(["convert", str(weights), str(output)]) == 0
    before, after = jt.read_weights(weights), jt.read_weights(output)
    assert f"{len(before)} tensors" in capsys.readouterr().out
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_convert_to_a_networks_leaves_writes_the_receipt_beside(weights, tmp_path, capsys):
    output = tmp_path / "out.safetensors"
    model = ["--model", "cifar_resnet8"]
    assert main(["convert", str(weights), str(output), *model]) == 0
    assert "leaves filled" in capsys.readouterr().out
    network = build("cifar_resnet8", num_classes=3)
    expected = jt.leaf_names({"params": network.params, "stats": network.stats})
    assert sorted(jt.read_weights(output)) == sorted(expected)
    receipt = jt.Receipt.from_json((tmp_path / "out.safetensors.receipt.json").read_text())
    assert receipt.sha256 == sha256_of(weights) and receipt.rules_name == "pytorch_resnet_cifar10"


def test_convert_to_a_folder_makes_a_model_that_loads(weights, tmp_path, capsys):
    assert main(["convert", str(weights), str(tmp_path / "net"), "--model", "auto", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"] == "cifar_resnet8"
    assert jt.load(tmp_path / "net").num_classes == 3


def test_convert_tells_what_does_not_fit_and_writes_nothing(weights, tmp_path, capsys):
    arguments = ["convert", str(weights), str(tmp_path / "net"), "--model", "cifar_resnet14"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "expected weights of cifar_resnet14, found those of cifar_resnet8" in error
    assert "Traceback" not in error
    assert main(["convert", str(weights), str(tmp_path / "net.xyz")]) == 2
    assert "expected a file name that ends in" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
