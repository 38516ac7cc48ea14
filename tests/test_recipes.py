"""The recipes: the paper's numbers, Detectron's and torchvision's own, every difference with its sources, the page."""

import inspect
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch

from mrcnn_scratch import build_model
from mrcnn_scratch.config import ModelConfig
from mrcnn_scratch.presets import PRESETS, model_config
from mrcnn_scratch.recipe_report import NONE, compare, main, show, table, tables, with_tables
from mrcnn_scratch.recipe_sources import MODEL, OURS, TRAINING, applies, sources
from mrcnn_scratch.recipes import COCO_IMAGES, STYLES, recipe, scaled, usable_images
from mrcnn_scratch.schedule import TrainConfig, lr_at

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
BIG = [name for name in PRESETS if not name.startswith("tiny")]


def drops(train: TrainConfig) -> list[int]:
    """The steps after which the learning rate is a tenth, found by asking for every rate around them."""
    near = sorted({round(m * train.steps) + d for m in train.milestones for d in (-1, 0)})
    return [b for a, b in zip(near, near[1:], strict=False) if lr_at(b, train) < lr_at(a, train) * 0.2]


def numbers(made) -> dict:
    train = made.train
    return {
        "steps": train.steps, "drops": drops(train), "batch": train.batch_size, "lr": train.lr,
        "micro": train.images_per_micro_batch,
    }  # fmt: skip


# Mask R-CNN, sections 3.1 and 5: 160k iterations, 8 GPUs x 2 images, lr 0.02, / 10 at 120k; ResNeXt 1 image, 0.01
PAPER = {"steps": 160_000, "drops": [120_000], "batch": 16, "lr": 0.02, "micro": 2}
# e2e_*_1x.yaml: MAX_ITER, STEPS, NUM_GPUS x IMS_PER_BATCH, BASE_LR
DETECTRON = {"steps": 90_000, "drops": [60_000, 80_000], "batch": 16, "lr": 0.02, "micro": 2}
DETECTRON_ONE = {"steps": 180_000, "drops": [120_000, 160_000], "batch": 8, "lr": 0.01, "micro": 1}


@pytest.mark.parametrize(
    ("name", "style", "keypoints", "wanted"),
    [
        ("R50-FPN", "paper", 0, PAPER),
        ("R101-C4", "paper", 0, PAPER),
        ("R50-C5", "paper", 0, PAPER),
        ("X101-FPN", "paper", 0, {**PAPER, "batch": 8, "lr": 0.01, "micro": 1}),
        ("R50-FPN", "paper", 17, DETECTRON),  # section 5: 90k, / 10 at 60k and 80k
        ("R50-FPN", "detectron", 0, DETECTRON),
        ("R101-FPN", "detectron", 0, DETECTRON),
        ("R50-C4", "detectron", 0, DETECTRON_ONE),
        ("X101-FPN", "detectron", 0, DETECTRON_ONE),
        ("X101-32x8d-FPN", "detectron", 0, DETECTRON_ONE),
        ("R50-FPN", "detectron", 17, DETECTRON),
        ("X101-FPN", "detectron", 17, DETECTRON),
    ],
)
def test_schedules(name, style, keypoints, wanted):
    assert numbers(recipe(name, style, keypoints)) == wanted


def test_what_all_recipes_share_is_the_papers():
    for name in BIG:
        for style in STYLES:
            if table_has(name, style):
                train = recipe(name, style).train
                assert (train.momentum, train.weight_decay, train.gamma, train.flip) == (0.9, 1e-4, 0.1, 0.5)
                assert (train.optimizer, train.schedule, train.clip_norm) == ("sgd", "step", None)
                assert train.scale == (1.0, 1.0) and train.precision == "float32"
                assert train.decay_norm_bias == (style != "detectron")


def table_has(name: str, style: str) -> bool:
    neck = PRESETS[name].neck
    return style == "paper" or neck == "fpn" or (neck == "c4" and style == "detectron")


def test_warm_up():
    for style in ("paper", "detectron"):  # Detectron's config.py: 500 iterations from a third
        train = recipe("R50-FPN", style).train
        assert lr_at(0, train) == pytest.approx(0.02 / 3) and lr_at(250, train) == pytest.approx(0.02 * 2 / 3)
        assert lr_at(499, train) < 0.02 == lr_at(500, train)
    train = recipe("R50-FPN", "torchvision").train  # engine.py: LinearLR from 1/1000 over 1000
    assert lr_at(0, train) == pytest.approx(2e-5) and lr_at(999, train) < 0.02 == lr_at(1000, train)


def test_torchvision_counts_epochs():
    train = recipe("R50-FPN", "torchvision").train
    per_epoch = COCO_IMAGES // 16  # 7,329 iterations
    assert train.steps == 26 * per_epoch == 190_554 and drops(train) == [16 * per_epoch, 22 * per_epoch]
    train = recipe("R50-FPN", "torchvision", images=1000).train
    assert train.steps == 26 * 62 and drops(train) == [16 * 62, 22 * 62] and train.warmup_steps == 61
    train = recipe("R50-FPN", "torchvision", keypoints=17, images=1600).train
    assert train.steps == 4600 and drops(train) == [3600, 4300]
    assert recipe("R50-FPN", "torchvision", images=3).train.steps == 26  # fewer images than a batch
    assert recipe("R50-FPN", "paper", images=1000) == recipe("R50-FPN")


def test_the_papers_model_fields():
    fpn, c4 = recipe("R50-FPN").model_config(), recipe("R50-C4").model_config()
    for config in (fpn, c4):
        assert (config.min_size, config.max_size, config.freeze_at, config.norm) == (800, 1333, 2, "frozen")
        assert (config.detections_per_image, config.box_nms, config.score_threshold) == (100, 0.5, 0.05)
        assert (config.roi_positive_fraction, config.roi_positive_iou) == (0.25, 0.5)
        assert config.train_min_sizes == () and config.sampling_ratio == 2
        assert sum(len(level) for level in config.anchor_sizes) == 5 and len(config.aspect_ratios) == 3
    assert (fpn.roi_batch, fpn.rpn_post_nms_test, c4.roi_batch, c4.rpn_post_nms_test) == (512, 1000, 64, 300)
    assert (c4.box_pool, c4.res5_stride, c4.mask_pool, fpn.box_pool, fpn.mask_pool) == (7, 1, 7, 7, 14)
    sizes = recipe("R50-FPN", keypoints=17).model_config(keypoints=17).train_min_sizes
    assert sizes == tuple(range(640, 801))


def test_detectrons_model_fields():
    """e2e_mask_rcnn_R-50-C4_1x.yaml over config.py."""
    c4 = recipe("R50-C4", "detectron").model_config()
    assert (c4.roi_batch, c4.rpn_pre_nms_train, c4.rpn_post_nms_train) == (512, 12000, 2000)
    assert (c4.rpn_pre_nms_test, c4.rpn_post_nms_test, c4.sampling_ratio) == (6000, 1000, 0)
    assert (c4.box_pool, c4.mask_pool, c4.res5_stride) == (14, 14, 2)
    fpn = recipe("R50-FPN", "detectron", keypoints=17).model_config(keypoints=17)
    assert (fpn.roi_batch, fpn.rpn_pre_nms_train, fpn.rpn_pre_nms_test, fpn.sampling_ratio) == (512, 2000, 1000, 2)
    assert fpn.train_min_sizes == (640, 672, 704, 736, 768, 800) and not fpn.roi_aligned
    assert [round(255 * value, 4) for value in fpn.mean] == [122.7717, 115.9465, 102.9801]  # PIXEL_MEANS, red first
    assert fpn.rpn_straddle == 0 and fpn.box_beta == 1 and fpn.paste_legacy and fpn.mask_target_binary
    assert fpn.stride_in_1x1 and not recipe("X101-FPN", "detectron").model_config().stride_in_1x1


@pytest.fixture(scope="module")
def torchvision_models():
    """torchvision's own, without memory."""
    from torchvision.models import detection

    with torch.device("meta"):
        return {
            0: detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None),
            17: detection.keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None),
        }


@pytest.mark.parametrize("keypoints", [0, 17])
def test_torchvisions_model_fields_are_those_of_its_models(torchvision_models, keypoints):
    theirs = torchvision_models[keypoints]
    ours = recipe("R50-FPN", "torchvision", keypoints).model_config(keypoints=keypoints, masks=not keypoints)
    rpn, heads, transform = theirs.rpn, theirs.roi_heads, theirs.transform
    assert (rpn._pre_nms_top_n["training"], rpn._pre_nms_top_n["testing"]) == (2000, 1000)
    pairs = {
        "rpn_pre_nms_train": rpn._pre_nms_top_n["training"], "rpn_pre_nms_test": rpn._pre_nms_top_n["testing"],
        "rpn_post_nms_train": rpn._post_nms_top_n["training"], "rpn_post_nms_test": rpn._post_nms_top_n["testing"],
        "rpn_nms": rpn.nms_thresh, "rpn_min_size": rpn.min_size,
        "rpn_positive_iou": rpn.proposal_matcher.high_threshold,
        "rpn_negative_iou": rpn.proposal_matcher.low_threshold,
        "rpn_batch": rpn.fg_bg_sampler.batch_size_per_image,
        "rpn_positive_fraction": rpn.fg_bg_sampler.positive_fraction,
        "roi_batch": heads.fg_bg_sampler.batch_size_per_image,
        "roi_positive_fraction": heads.fg_bg_sampler.positive_fraction,
        "roi_positive_iou": heads.proposal_matcher.high_threshold,
        "box_weights": heads.box_coder.weights, "score_threshold": heads.score_thresh, "box_nms": heads.nms_thresh,
        "detections_per_image": heads.detections_per_img, "box_pool": heads.box_roi_pool.output_size[0],
        "sampling_ratio": heads.box_roi_pool.sampling_ratio, "canonical_size": heads.box_roi_pool.canonical_scale,
        "canonical_level": heads.box_roi_pool.canonical_level, "box_hidden": heads.box_head.fc6.out_features,
        "fpn_channels": theirs.backbone.out_channels, "anchor_sizes": rpn.anchor_generator.sizes,
        "aspect_ratios": rpn.anchor_generator.aspect_ratios[0], "mean": tuple(transform.image_mean),
        "std": tuple(transform.image_std), "max_size": transform.max_size, "min_size": transform.min_size[-1],
        "train_min_sizes": transform.min_size if keypoints else (),
    }  # fmt: skip
    differing = {name: (getattr(ours, name), value) for name, value in pairs.items() if getattr(ours, name) != value}
    assert not differing


def test_torchvision_freezes_stem_and_res2():
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    parameters = inspect.signature(maskrcnn_resnet50_fpn).parameters
    assert parameters["trainable_backbone_layers"].default is None  # which with pretrained weights becomes 3 of 5
    source = inspect.getsource(maskrcnn_resnet50_fpn)
    assert "_validate_trainable_layers(is_trained, trainable_backbone_layers, 5, 3)" in source
    assert recipe("R50-FPN", "torchvision").model_config().freeze_at == 5 - 3


@pytest.mark.parametrize("name", list(PRESETS))
@pytest.mark.parametrize(("keypoints", "masks"), [(0, True), (0, False), (17, False), (17, True)])
def test_every_difference_is_listed_with_values_and_sources(name, keypoints, masks):
    made = {style: recipe(name, style, keypoints) for style in STYLES if table_has(name, style)}
    configs = {style: one.model_config(keypoints=keypoints, masks=masks) for style, one in made.items()}
    listed = {(choice.part, choice.field): choice for choice in compare(name, keypoints, masks)}
    held = {"training": {s: asdict(one.train) for s, one in made.items()}}
    held["model"] = {s: asdict(config) for s, config in configs.items()}
    for part, values in held.items():
        for field in values["paper"]:
            found = {repr(values[style][field]) for style in made}
            if len(found) == 1:
                continue
            if part == "model" and not applies(field, configs["paper"]):
                continue  # a field of a branch or neck that the model has not
            assert listed[part, field].differs, field
    for choice in listed.values():
        for style in STYLES:
            assert (choice.values[style] == NONE) == (style not in made), choice
            assert choice.sources[style].strip(), choice
            assert style in made or choice.sources[style] == NONE
        assert "<" not in "".join(choice.sources.values())


def test_every_field_has_its_sources():
    training = {field.name for field in fields(TrainConfig)}
    assert training - OURS == set(TRAINING)
    model = {field.name for field in fields(ModelConfig)}
    assert set(MODEL) <= model
    union = model_config("R50-FPN", keypoints=17)
    for config in (union, model_config("R50-C4"), model_config("R50-C5", keypoints=17)):
        for name in model:
            if applies(name, config):
                assert all(isinstance(text, str) and text for text in sources(name, config)), name
    applied = {name for name in model if applies(name, union) or applies(name, model_config("R50-C4"))}
    assert applied == set(MODEL)
    silent = [name for name in MODEL if sources(name, union)[0] == "silent" and sources(name, union)[1] == "-"]
    assert not silent, "where the paper is silent, Detectron says it"


def test_a_field_without_a_branch_is_not_listed():
    names = {choice.field for choice in compare("R50-C4", masks=False)}
    assert not names & {"mask_pool", "keypoint_pool", "train_min_sizes", "box_hidden", "fpn_channels", "pyramid_top"}
    assert {"res5_stride", "roi_batch"} <= names
    names = {choice.field for choice in compare("R50-FPN", keypoints=17)}
    assert {"mask_pool", "keypoint_pool", "train_min_sizes", "box_hidden"} <= names and "res5_stride" not in names


def test_the_files_named_are_the_models_own():
    told = {choice.field: choice.sources["detectron"] for choice in compare("X101-FPN")}
    assert told["steps"] == "e2e_mask_rcnn_X-101-64x4d-FPN_1x.yaml: SOLVER.MAX_ITER"
    told = {choice.field: choice.sources for choice in compare("R101-C4", masks=False)}
    assert told["lr"]["detectron"] == "e2e_faster_rcnn_R-101-C4_1x.yaml: SOLVER.BASE_LR"
    assert told["lr"]["torchvision"] == NONE
    told = {choice.field: choice.sources for choice in compare("R50-FPN", keypoints=17)}
    assert told["steps"]["paper"] == "section 5"
    assert told["steps"]["detectron"].startswith("e2e_keypoint_rcnn_R-50-FPN_1x.yaml")


def test_a_recipe_is_told_with_what_the_others_do():
    text = show(recipe("R50-FPN"))
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.split()[:1] == ["steps"])
    assert lines[at].split() == ["steps", "160,000", "section", "3.1"]
    assert lines[at + 1].split()[:2] == ["90,000", "detectron:"]
    assert lines[at + 2].split()[:4] == ["190,554", "(26", "epochs)", "torchvision:"]
    assert "silent: as Detectron's config.py: SOLVER.WARM_UP_ITERS" in text
    momentum = next(line for line in lines if line.split()[:1] == ["momentum"])
    assert "0.9" in momentum and lines[lines.index(momentum) + 1].split()[0] == "weight_decay"  # all agree: one line
    text = show(recipe("R50-C4", "detectron"))
    assert "torchvision: train.py" not in text and "paper: section 3.1: 64 or 512" in text
    assert "the RPN: here with the heads" in text


def test_the_page_holds_the_tables_as_they_are(tmp_path):
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page) == page, "python -m mrcnn_scratch.recipe_report docs/recipes.md writes the tables anew"
    for name, text in tables().items():
        assert f"<!-- table {name} -->\n{text}\n<!-- end -->" in page
    stale = tmp_path / "stale.md"
    stale.write_text(page.replace("| 160,000 |", "| 170,000 |"), encoding="utf-8")
    main(str(stale))
    assert stale.read_text(encoding="utf-8") == page
    with pytest.raises(ValueError, match="no place for the table R50-C4"):
        with_tables(page.replace("<!-- table R50-C4 -->", ""))


def test_a_table_beside_another_keeps_what_differs():
    rows = table("R50-C4", beside=compare("R50-FPN")).splitlines()
    kept = {row.split("`")[1] for row in rows if row.startswith("| `")}
    assert {"roi_batch", "rpn_post_nms_test", "steps", "res5_stride"} <= kept
    assert not kept & {"momentum", "backbone", "min_size", "box_beta", "mean"}


def test_linear_scaling():
    paper = recipe("R50-FPN").train
    train, notes = scaled(paper, batch_size=4)
    assert (train.batch_size, train.lr, train.steps) == (4, 0.005, 640_000) and train.milestones == paper.milestones
    assert drops(train) == [480_000] and train.warmup_steps == 500 and train.images_per_micro_batch == 2
    assert len(notes) == 1 and "lr 0.005" in notes[0] and "steps 640,000" in notes[0] and "16" in notes[0]
    assert scaled(paper) == (paper, []) and scaled(paper, batch_size=16) == (paper, [])
    train, notes = scaled(paper, batch_size=4, lr=0.1)
    assert (train.lr, train.steps) == (0.1, 640_000) and "lr" not in notes[0] and "640,000" in notes[0]
    train, notes = scaled(paper, batch_size=4, steps=1000, lr=0.1)
    assert (train.lr, train.steps, train.warmup_steps) == (0.1, 1000, 200)
    assert len(notes) == 1 and "warm-up of 200" in notes[0] and "500" in notes[0]
    train, notes = scaled(paper, batch_size=32)
    assert (train.lr, train.steps) == (0.04, 80_000)


def test_other_settings_are_taken_as_they_are():
    paper = recipe("R50-FPN").train
    train, notes = scaled(paper, gamma=0.5, seed=3, images_per_micro_batch=4, precision="bfloat16")
    assert train == replace(paper, gamma=0.5, seed=3, images_per_micro_batch=4, precision="bfloat16") and not notes
    assert scaled(paper, batch_size=3)[0].images_per_micro_batch == 1
    assert scaled(paper, batch_size=6)[0].images_per_micro_batch == 2
    assert scaled(paper, batch_size=8, images_per_micro_batch=8)[0].images_per_micro_batch == 8
    assert scaled(paper, steps=100, warmup_steps=90) == (replace(paper, steps=100, warmup_steps=90), [])
    with pytest.raises(ValueError, match="batch_size is 0"):
        scaled(paper, batch_size=0)
    with pytest.raises(ValueError, match="images_per_micro_batch"):
        scaled(paper, images_per_micro_batch=5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("R50-FPN", "mine"), "unknown recipe 'mine': choose one of paper, detectron, torchvision"),
        (("R50",), "unknown model 'R50'"),
        (("R50-C4", "torchvision"), "torchvision has no recipe .* R50-C4, of neck 'c4': choose paper or detectron"),
        (("R50-C5", "torchvision"), "choose paper$"),
        (("R50-C5", "detectron"), "choose paper$"),
    ],
)
def test_what_there_is_no_recipe_for(arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe(*arguments)


def test_values_win_over_the_recipe():
    made = recipe("R50-C4", "detectron")
    assert made.model_config().roi_batch == 512 and made.model_config(roi_batch=7).roi_batch == 7
    assert recipe("tiny-fpn", keypoints=17).model == {}  # images are taken as they are: nothing to draw


def test_a_recipe_builds_its_model():
    with torch.device("meta"):
        made = recipe("R50-FPN", "torchvision", keypoints=17)
        model = build_model("R50-FPN", 2, masks=False, keypoints=17, conventions=made.conventions, **made.model)
    assert model.config == made.model_config(num_classes=2, masks=False, keypoints=17)


class Folder:
    """Three images: two persons, of which one has keypoints; a crowd; nothing."""

    class_names, num_classes, num_keypoints = ["background", "person"], 2, 17
    keypoint_names, flip_pairs, skeleton, label_to_category = [], [], [], {1: 1}
    image_ids = [7, 8, 9]

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return index

    def coco_dict(self):
        rows = [(7, 0, 9), (7, 0, 0), (8, 1, 0)]
        names = ("image_id", "iscrowd", "num_keypoints")
        return {"images": [], "categories": [], "annotations": [dict(zip(names, row, strict=True)) for row in rows]}


def test_images_without_objects_are_left_out():
    assert usable_images(Folder()).image_ids == [7] and usable_images(Folder(), 9).image_ids == [7]
    with pytest.raises(ValueError, match="none of 3 images has an object and 10 labelled keypoints"):
        usable_images(Folder(), 10)
    full = Folder()
    full.image_ids = [7]
    full.__class__ = type("One", (Folder,), {"__len__": lambda self: 1})
    assert usable_images(full) is full
