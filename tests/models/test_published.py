"""Published files of weights, as people download them, give the published numbers."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import jaxtransfer as jt


@pytest.fixture(scope="module")
def cifar(real_data):
    """The first images of CIFAR-10's training set, with their labels."""
    folder = real_data / "datasets" / "cifar10_lossless_4k"
    sprites = [np.asarray(Image.open(folder / f"cifar10_batch_{i}.png")) for i in range(4)]
    images = np.concatenate(sprites).reshape(-1, 32, 32, 3)
    return images, np.loadtxt(folder / "labels.txt", dtype=int)


@pytest.fixture(scope="module", params=[20, 32])
def resnet(request, real_data):
    path = next((real_data / "weights" / "cifar10_resnet").glob(f"resnet{request.param}-*.th"))
    return request.param, jt.load(path)


@pytest.mark.pretrained
def test_a_file_of_torch_gives_the_logits_of_its_authors(real_data, cifar, resnet):
    depth, model = resnet
    assert model.spec.name == f"cifar_resnet{depth}"
    assert model.receipt.notes == ("prefix of names: module.",)
    assert model.receipt.sha256[:8] in model.receipt.file  # the authors name files by it
    reference = np.load(real_data / "reference" / "cifar_resnets_logits_lossless64.npz")
    logits = jt.predict(model, cifar[0][:64])
    np.testing.assert_allclose(logits, reference[f"resnet{depth}"], atol=1e-4)


@pytest.mark.pretrained
@pytest.mark.slow
def test_its_accuracy_is_the_published_one(cifar, resnet):
    depth, model = resnet
    right = jt.predict(model, cifar[0]).argmax(1) == cifar[1]
    assert right.mean() == {20: 0.998, 32: 1.0}[depth]


@pytest.fixture(scope="module")
def resnet8(real_data):
    return jt.load(real_data / "weights" / "mlperf_tiny_keras" / "pretrainedResnet.h5")


@pytest.mark.pretrained
def test_a_file_of_keras_with_its_optimizer_gives_the_logits_of_its_network(
    real_data, cifar, resnet8
):
    assert resnet8.spec.name == "cifar_resnet8"
    receipt = resnet8.receipt
    assert receipt.rules_name == "mlperf_tiny"
    assert receipt.notes == ("prefix of names: model_weights/",)
    assert len(receipt.ignored) == 69  # two moments for each of 34 parameters, and a counter
    assert all(name.startswith("optimizer_weights/") for name in receipt.ignored)
    reference = np.load(real_data / "reference" / "resnet8_logits_cifar_lossless64.npz")
    logits = jt.predict(resnet8, cifar[0][:64])
    np.testing.assert_allclose(logits, reference["logits"], atol=1e-4)


@pytest.mark.pretrained
def test_its_accuracy_is_that_of_its_network(cifar, resnet8):
    right = jt.predict(resnet8, cifar[0]).argmax(1) == cifar[1]
    assert right.mean() == 0.92975
