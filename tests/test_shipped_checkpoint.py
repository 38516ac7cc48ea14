"""The checkpoint inside the package is small, is the file its record describes, and is as good as the record says."""

import csv
import hashlib
import json

import pytest
import torch

from mrcnn_scratch import ShapesDataset, evaluate, load_model
from mrcnn_scratch.predict import shipped_checkpoint

RECORD = json.loads(shipped_checkpoint().with_suffix(".json").read_text())


def test_size_and_checksum():
    content = shipped_checkpoint().read_bytes()
    assert len(content) == RECORD["bytes"] <= 4_000_000
    assert hashlib.sha256(content).hexdigest() == RECORD["sha256"]


def test_the_record_says_how_it_was_made():
    assert RECORD["command"].startswith("mrcnn train ") and f"--seed {RECORD['seed']}" in RECORD["command"]
    assert f"--steps {RECORD['train_config']['steps']}" in RECORD["command"]
    with open(shipped_checkpoint().with_suffix(".log.csv")) as handle:
        rows = list(csv.DictReader(handle))
    assert int(rows[-1]["step"]) == RECORD["train_config"]["steps"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) / 2


def test_it_is_as_good_as_its_record():
    model, metadata = load_model(shipped_checkpoint())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    validation = ShapesDataset("demo", RECORD["val_images"], seed=RECORD["seed"], split="val")
    assert metadata["class_names"] == validation.class_names
    measured = evaluate(model.to(memory_format=torch.channels_last), validation, progress=False)
    for kind, values in RECORD["metrics"].items():
        for name, value in values.items():
            assert measured[kind][name] == pytest.approx(value, abs=0.01), (kind, name)
