"""The dry run: counts held against torchvision's, the schedule, what is measured, and that nothing changes."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mrcnn_scratch import build_model, dry_run
from mrcnn_scratch.datasets.shapes import ShapesDataset
from mrcnn_scratch.dry_run import PHASES, landmarks
from mrcnn_scratch.parameter_counts import (
    CLASSIFIERS,
    DETECTORS,
    Check,
    count,
    count_parts,
    fixed_norms,
    published_checks,
    training_bytes,
)
from mrcnn_scratch.presets import model_config
from mrcnn_scratch.recipes import recipe
from mrcnn_scratch.schedule import TrainConfig


def meta(name: str, *arguments, **fields):
    with torch.device("meta"):
        return build_model(name, *arguments, **fields)


@pytest.mark.parametrize("key", list(DETECTORS))
def test_published_detectors_are_torchvisions(key):
    """The number in its documentation, that of a model it builds, and ours, part by part."""
    from torchvision.models import detection
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d

    name, classes, published = DETECTORS[key]
    weights = {n: w for n in detection.__dict__ if n.endswith("ResNet50_FPN_Weights") for w in [detection.__dict__[n]]}
    task = {"fasterrcnn": "FasterRCNN", "maskrcnn": "MaskRCNN", "keypointrcnn": "KeypointRCNN"}[name.split("_")[0]]
    assert weights[f"{task}_ResNet50_FPN_Weights"].COCO_V1.meta["num_params"] == published
    with torch.device("meta"):
        body = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d)
        theirs = getattr(detection, task)(body, num_classes=classes, **({"num_keypoints": 17} if key[2] else {}))
    backbone, masks, keypoints = key
    parts = count_parts(meta("R50-FPN", classes, masks, keypoints))
    assert sum(p.numel() for p in theirs.parameters()) == published == sum(parts.values())
    heads = theirs.roi_heads
    assert parts["backbone"] == count(theirs.backbone.body) and parts["FPN"] == count(theirs.backbone.fpn)
    assert parts["RPN"] == count(theirs.rpn) and parts["box head"] == count(heads.box_head) + count(heads.box_predictor)
    if masks:
        assert parts["mask head"] == count(heads.mask_head) + count(heads.mask_predictor)
    if keypoints:
        assert parts["keypoint head"] == count(heads.keypoint_head) + count(heads.keypoint_predictor)
    ours = published_checks(model_config("R50-FPN", masks=masks, keypoints=keypoints, num_classes=5))
    assert [(check.published, check.ours) for check in ours if name in check.what] == [(published, published)]


@pytest.mark.parametrize(
    ("name", "theirs"), [("R101-FPN", "resnet101"), ("X101-32x8d-FPN", "resnext101_32x8d"), ("R18-FPN", "resnet18")]
)
def test_other_bodies_are_torchvisions_too(name, theirs):
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d

    with torch.device("meta"):
        body = resnet_fpn_backbone(backbone_name=theirs, weights=None, norm_layer=FrozenBatchNorm2d)
        peer = MaskRCNN(body, num_classes=91)
    ours = meta(name)
    assert sum(count_parts(ours).values()) == count(peer)
    assert fixed_norms(ours) == sum(m.weight.numel() * 2 for m in peer.modules() if isinstance(m, FrozenBatchNorm2d))
    frozen = {p.numel() for n, p in ours.backbone.named_parameters() if not p.requires_grad and n == "stem.0.weight"}
    assert frozen == {64 * 3 * 49}


@pytest.mark.parametrize("backbone", list(CLASSIFIERS))
def test_published_classifiers(backbone):
    from torchvision import models

    published = CLASSIFIERS[backbone]
    if backbone != "efficientnet_lite0":  # which torchvision has not
        with torch.device("meta"):
            assert count(getattr(models, backbone)()) == published
        assert {w.meta["num_params"] for w in models.get_model_weights(backbone)} == {published}
    names = ("R18-FPN", "R50-C4", "R101-FPN", "X101-FPN", "X101-32x8d-FPN", "EffLite0-FPN")
    config = next(c for c in map(model_config, names) if c.backbone == backbone)
    (check,) = [c for c in published_checks(config) if "ImageNet" in c.what]
    assert (check.published, check.ours) == (published, published) and str(check).endswith("equal")


def test_a_count_that_differs_is_told():
    narrow = model_config("R50-FPN", mask_channels=128)
    told = [str(check) for check in published_checks(narrow)]
    assert told[0].startswith("torchvision's maskrcnn_resnet50_fpn, 91 classes: published 44,401,393, ours 4")
    assert told[0].endswith("DIFFERENT") and told[1].endswith("equal")
    assert published_checks(model_config("tiny-fpn")) == []
    only = published_checks(model_config("R50-FPN", stages="rpn"))
    assert len(only) == 1 and "ImageNet" in only[0].what
    assert str(Check("x", 1000, 1000)) == "x: published 1,000, ours 1,000: equal"


def test_bytes_of_training():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))  # 16 + 8 parameters; 8 statistics and a counter
    model[0].bias.requires_grad_(False)
    assert training_bytes(model) == {"weights": 4 * 32 + 8, "gradients": 80, "momentum": 80}
    assert training_bytes(model, "adamw")["momentum"] == 160


def test_landmarks():
    train = recipe("R50-FPN", "detectron").train
    told = landmarks(train, 117_266)
    assert [(what, step) for what, step, *_ in told] == [
        ("start", 0), ("warm", 500), ("drop", 60_000), ("drop", 80_000), ("last", 89_999),
    ]  # fmt: skip
    assert [rate for *_, rate in told] == pytest.approx([0.02 / 3, 0.02, 0.002, 0.0002, 0.0002])
    assert told[2][2] == pytest.approx(60_000 * 16 / 117_266)
    cosine = TrainConfig(steps=10, warmup_steps=0, schedule="cosine")
    assert [(what, step) for what, step, *_ in landmarks(cosine, 4)] == [("start", 0), ("last", 9)]
    short = TrainConfig(steps=10, warmup_steps=20)
    assert [(what, step) for what, step, *_ in landmarks(short, 4)] == [("start", 0), ("drop", 8), ("last", 9)]
    never = TrainConfig(steps=4, milestones=(1.0,), warmup_steps=0)
    assert [what for what, *_ in landmarks(never, 4)] == ["start", "last"]


@pytest.fixture(scope="module")
def measured():
    """A model before and after a dry run on real data, and the run."""
    model = build_model("tiny-fpn", 4, keypoints=17, seed=3).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = TrainConfig(steps=7200, batch_size=6, images_per_micro_batch=2, warmup_steps=100)
    made = dry_run.dry_run(model, ShapesDataset("demo", 8, seed=1), config, steps=2, progress=False)
    return SimpleNamespace(model=model, before=before, run=made)


def test_the_model_stays_as_it_was(measured):
    after = measured.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in measured.before.items())
    assert not measured.model.training and all(p.grad is None for p in measured.model.parameters())


def test_what_is_measured(measured):
    run, seconds = measured.run, measured.run.measured.seconds
    assert list(seconds) == list(PHASES) and all(0 < value < 60 for value in seconds.values())
    step = 3 * (seconds["loading"] + seconds["forward"] + seconds["backward"]) + seconds["update"]
    assert run.measured.step_seconds == pytest.approx(step)
    assert run.images_per_second == pytest.approx(6 / step) and run.hours == pytest.approx(2 * step)
    where = run.measured.where
    assert run.measured.steps == 2 and where.startswith("cpu, float32, ") and "thread" in where
    assert run.measured.peak_bytes > 100e6 and run.images == 8 and run.micro_batch == 2 and run.processes == 1
    assert run.total == run.trained == count(measured.model) and run.fixed == 0


def test_the_report(measured):
    text = str(measured.run)
    assert f"{count(measured.model.backbone):,}" in text and f"{count(measured.model):,}, of which" in text
    assert "7,200 steps of 6 images in micro-batches of 2, an epoch is 8 images" in text
    assert "measured: 2 steps of 2 images in each of 1 process, after one to warm up" in text
    assert "on 3 of them, one micro-batch each" in text and "images of the data" in text and "noise" not in text
    assert f"{measured.run.images_per_second:.3g} images per second" in text and "MB were held" in text


def runs(monkeypatch, model, dataset, config, steps=1, **options):
    """A dry run with its clock and steps replaced: what each step was given."""
    seen = []

    def step(learner, load):
        batch = load()
        seen.append(SimpleNamespace(learner=learner, batch=batch, rate=learner.optimizer.param_groups[0]["lr"]))
        late = 0.5 * (len(seen) - 3)  # -0.5, 0, 0.5, ..
        return [10.0, 100.0, 1000.0, 10_000.0] if len(seen) == 1 else [1.0 + late, 2.0 + late, 3.0 + late, 4.0 + late]

    monkeypatch.setattr(dry_run, "_step", step)
    return dry_run.dry_run(model, dataset, config, steps, progress=False, **options), seen


def test_the_first_step_warms_up_and_does_not_count(monkeypatch):
    model = build_model("tiny-fpn", 4)
    config = TrainConfig(steps=3600, batch_size=8, images_per_micro_batch=2, warmup_steps=0)
    run, seen = runs(monkeypatch, model, ShapesDataset("demo", 8), config, 3)
    assert len(seen) == 4 and all(one.rate == 0 and len(one.batch.images) == 2 for one in seen)
    assert run.measured.step_seconds == 4 * (1 + 2 + 3) + 4 and run.hours == 28
    assert "28.0 hours for 3,600 steps on 1 such process" in str(run)
    assert "10.0 hours on 4 of them" in str(run)
    run, _ = runs(monkeypatch, model, ShapesDataset("demo", 8), config, 3, workers=2)
    assert run.measured.step_seconds == 4 * (2 + 3) + 4  # loading goes on beside


def test_noise_takes_the_place_of_absent_data(monkeypatch):
    model = build_model("tiny-fpn", 4, keypoints=17, min_size=40, max_size=70)
    run, seen = runs(monkeypatch, model, None, TrainConfig(batch_size=2))
    assert all(image.shape == (3, 40, 70) for one in seen for image in one.batch.images)
    assert "noise of 40 x 70 pixels with 7 objects an image" in str(run) and run.images == 56_599
    plain, _ = runs(monkeypatch, build_model("tiny-fpn", 4), None, TrainConfig(batch_size=2))
    assert plain.images == 117_266


def test_counting_alone_runs_nothing(monkeypatch):
    monkeypatch.setattr(dry_run, "_step", None)
    for name in ("R50-FPN", "X101-FPN", "R50-C4"):
        model = meta(name, 81)
        run = dry_run.dry_run(model, None, recipe(name).train, steps=0)
        assert run.measured is run.hours is run.images_per_second is None and "nothing was run" in str(run)
        assert run.total == count(model) > run.trained and run.fixed > 0
        assert all(check.ours == check.published for check in run.checks) and run.checks
        assert all(p.device.type == "meta" for p in model.parameters())


@pytest.mark.parametrize("fields", [{}, {"optimizer": "adamw"}, {"precision": "bfloat16"}])
def test_infinite_gradients_do_not_reach_the_weights(fields):
    model = build_model("tiny-fpn", 4)
    with torch.no_grad():
        model.box_predictor.bbox_pred.bias[4:] = 1e38  # the loss is finite, its gradients' norm is not
        model.box_predictor.cls_score.weight.mul_(1e25)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = TrainConfig(batch_size=1, **fields)
    dry_run.dry_run(model, ShapesDataset("demo", 2), config, steps=1, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="num_classes=9"):
        dry_run.dry_run(build_model("tiny-fpn", 9), ShapesDataset("demo", 2), TrainConfig(), 1)
    with pytest.raises(ValueError, match="images_per_micro_batch"):
        TrainConfig(batch_size=4, images_per_micro_batch=3)
