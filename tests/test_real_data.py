"""Real photographs: overfit eight, evaluate a split, predict on photos through the command line."""

import json
import sys

import pytest
import torch
from PIL import Image

from mrcnn_scratch import build_model, cli
from mrcnn_scratch.datasets.coco import CocoDataset
from mrcnn_scratch.datasets.subset import Subset
from mrcnn_scratch.evaluation import evaluate
from mrcnn_scratch.schedule import TrainConfig
from mrcnn_scratch.training import train
from mrcnn_scratch.weights import save_model

SMALL = {"min_size": 192, "max_size": 320, "anchor_sizes": ((24,), (48,), (96,), (192,))}


def photos_of_large_objects(dataset: CocoDataset, count: int) -> Subset:
    """The first photos, by id, whose every object is plain and at least 48 pixels wide and high."""
    chosen = []
    for index in range(len(dataset)):
        _, target = dataset[index]
        sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
        if len(sides) and not target["iscrowd"].any() and (sides >= 48).all():
            chosen.append(index)
    return Subset(dataset, chosen[:count])


@pytest.fixture(scope="module")
def overfitted(real_data):
    """A model trained from random weights on eight photos until it knows them by heart."""
    torch.set_num_threads(1)
    photos = photos_of_large_objects(CocoDataset(real_data / "coco_free", "train", keypoints=False), 8)
    model = build_model("tiny-fpn", photos.num_classes, **SMALL).to(memory_format=torch.channels_last)
    config = TrainConfig(
        steps=220,
        batch_size=4,
        optimizer="adamw",
        lr=1.5e-3,
        warmup_steps=20,
        schedule="cosine",
        clip_norm=10.0,
        flip=0.0,
    )
    train(model, photos, config, progress=False)
    return model, photos


def test_eight_photographs_are_learned_by_heart(overfitted):
    model, photos = overfitted
    assert len(photos) == 8 and sum(len(photos[i][1]["boxes"]) for i in range(8)) > 20
    measured = evaluate(model, photos, progress=False)
    assert measured["box"]["AP50"] > 0.95, measured["box"]
    assert measured["mask"]["AP50"] > 0.9, measured["mask"]


def test_the_validation_split_is_evaluated(overfitted, real_data):
    model, _ = overfitted
    split = CocoDataset(real_data / "coco_free", "val", keypoints=False)
    assert len(split) == 26
    measured = evaluate(model, split, progress=False)
    # eight photos teach nothing general: what counts is that every statistic is there
    assert 0 <= measured["box"]["AP"] < 0.2 and 0 <= measured["mask"]["AP"] < 0.2


def test_photos_are_annotated_from_the_command_line(overfitted, real_data, tmp_path, monkeypatch):
    model, photos = overfitted
    checkpoint, out = tmp_path / "photos.safetensors", tmp_path / "out"
    save_model(
        model, checkpoint, class_names=photos.class_names, label_to_category=sorted(photos.label_to_category.items())
    )
    files = sorted((real_data / "demo_usgov").glob("*.jpg"))[:3]
    monkeypatch.setattr(
        sys, "argv", ["mrcnn", "predict", *map(str, files), "--checkpoint", str(checkpoint), "--out", str(out)]
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    for file in files:
        with Image.open(file) as photo, Image.open(out / f"{file.stem}.png") as picture:
            assert picture.size == photo.size
    results = json.loads((out / "results_segm.json").read_text())
    heights = {i: Image.open(file).size[1] for i, file in enumerate(files, 1)}
    assert all(result["segmentation"]["size"][0] == heights[result["image_id"]] for result in results)
