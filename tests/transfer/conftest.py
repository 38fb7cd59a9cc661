"""What the tests of this room share."""

import pytest

import jaxtransfer as jt


@pytest.fixture(scope="module")
def model():
    return jt.init("cifar_resnet8", in_channels=1, width=4, input_size=(8, 8), num_classes=3)
