from __future__ import annotations

import json

import pytest

import jaxtransfer as jt
from jaxtransfer.models.timm_config import TimmConfig, read_timm_config

FIELDS = {
    "input_size": [3, 224, 288],
    "interpolation": "bicubic",
    "crop_pct": 0.95,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.2, 0.1],
}
EXPECTED = TimmConfig(
    "resnet50",
    jt.Preprocess(
        size=(224, 288),
        channels=3,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.2, 0.1),
        interpolation="bicubic",
        crop_fraction=0.95,
    ),
)


@pytest.mark.parametrize(
    "content",
    [
        {"architecture": "resnet50", "pretrained_cfg": {**FIELDS, "tag": "a1_in1k"}},
        {"architecture": "resnet50", **FIELDS},
    ],
)
def test_a_config_of_timm_tells_network_and_preprocessing(tmp_path, content):
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_timm_config(tmp_path) == EXPECTED


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "[]",
        "\udcff",
        '{"architectures": ["BertModel"]}',
        json.dumps({"architecture": "resnet50"}),
        json.dumps({"architecture": 3, **FIELDS}),
        json.dumps({"architecture": "resnet50", **FIELDS, "input_size": [3, 224]}),
        json.dumps({"architecture": "resnet50", **FIELDS, "crop_pct": 0}),
        json.dumps({"architecture": "resnet50", "pretrained_cfg": [1]}),
    ],
)
def test_any_other_config_tells_nothing(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert read_timm_config(tmp_path) is None
