"""Pictures: the right marks at the right places, whatever is in the image, and no trace in pyplot."""

import io
import math
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from PIL import Image

from mrcnn_scratch import build_model
from mrcnn_scratch.visualize import (
    annotated,
    ap_against_iou,
    compare_ops,
    draw_instances,
    figure_png,
    label_colour,
    loss_curves,
    save_annotated,
    stage_poster,
    truth_and_detections,
)
from mrcnn_scratch.visualize.curves import moving_average
from mrcnn_scratch.visualize.instances import mask_outline, read_instances
from mrcnn_scratch.visualize.pictures import VERDICTS
from mrcnn_scratch.visualize.stages import run_stages
from mrcnn_scratch.visualize.style import LEFT, MIDDLE, RIGHT

NAMES = ["background", "person", "star", "ring"]
SKELETON = [(5, 7), (6, 8), (5, 6)]  # left arm, right arm, shoulders
H, W = 40, 64


def image(height=H, width=W):
    return torch.full((3, height, width), 0.5)


def keypoints(visibility=2):
    points = torch.zeros(17, 3)
    for joint, (x, y) in {5: (20.5, 12.5), 6: (12.5, 12.5), 7: (22.5, 20.5), 8: (10.5, 20.5)}.items():
        points[joint] = torch.tensor([x, y, visibility])
    return points


def target():
    """A person with four keypoints, one of them hidden, and a ring: a square with a hole."""
    masks = torch.zeros(2, H, W, dtype=torch.uint8)
    masks[0, 8:32, 8:24] = 1
    masks[1, 10:30, 36:56] = 1
    masks[1, 15:25, 41:51] = 0
    points = torch.stack([keypoints(), torch.zeros(17, 3)])
    points[0, 8, 2] = 1
    return {
        "boxes": torch.tensor([[8.0, 8, 24, 32], [36, 10, 56, 30]]),
        "labels": torch.tensor([1, 3]),
        "masks": masks,
        "keypoints": points,
        "iscrowd": torch.tensor([0, 0]),
    }


def detection(shift=0):
    """The same as a model says it, `shift` pixels to the right; a weak star besides."""
    truth = target()
    masks = torch.roll(torch.cat([truth["masks"], truth["masks"][:1]]).float(), shift, dims=2)[:, None]
    boxes = truth["boxes"] + torch.tensor([shift, 0.0, shift, 0.0])
    points = keypoints(1)
    points[:, 2] = 1
    return {
        "boxes": torch.cat([boxes, torch.tensor([[2.0, 2, 6, 6]])]),
        "labels": torch.tensor([1, 3, 2]),
        "scores": torch.tensor([0.7, 0.9, 0.3]),
        "masks": masks,
        "keypoints": points.expand(3, 17, 3).clone(),
        "keypoints_scores": torch.zeros(3, 17),
    }


def empty_target(height=H, width=W):
    return {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, height, width, dtype=torch.uint8),
        "keypoints": torch.zeros(0, 17, 3),
        "iscrowd": torch.zeros(0, dtype=torch.int64),
    }


def empty_detection(height=H, width=W):
    found = empty_target(height, width) | {
        "scores": torch.zeros(0),
        "masks": torch.zeros(0, 1, height, width),
    }
    del found["iscrowd"]
    return found


def axes_of(size=(4, 3)):
    return Figure(figsize=size).add_axes((0, 0, 1, 1))


def rendered(figure):
    with Image.open(io.BytesIO(figure_png(figure))) as picture:
        return np.asarray(picture.convert("RGB"))


def tags(axes):
    return [text.get_text() for text in axes.texts]


def boxes_drawn(axes):
    return [p.get_bbox().extents.tolist() for p in axes.patches if isinstance(p, Rectangle)]


# The outline


def inside(outline, x, y):
    """Nonzero winding over the outline's loops, as Agg fills: holes run the other way round."""
    turns = 0.0
    for loop in outline.to_polygons(closed_only=True):
        angle = np.unwrap(np.arctan2(loop[:, 1] - y, loop[:, 0] - x))
        turns += (angle[-1] - angle[0]) / (2 * math.pi)
    return round(turns) != 0


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_outline_holds_exactly_the_pixels_of_the_mask(dtype):
    mask = np.random.default_rng(0).random((9, 14)) < 0.5
    outline = mask_outline(mask.astype(dtype))
    found = [[inside(outline, x + 0.5, y + 0.5) for x in range(14)] for y in range(9)]
    np.testing.assert_array_equal(found, mask)


def test_outline_runs_where_a_soft_mask_crosses_one_half():
    mask = np.zeros((5, 8), np.float32)
    mask[1:4, 2:5], mask[1:4, 5] = 1.0, 0.25  # between the centres 4.5 (1.0) and 5.5 (0.25): 0.5 at 4.5 + 2/3
    assert mask_outline(mask).get_extents().x1 == pytest.approx(4.5 + 2 / 3, abs=1e-3)


def test_outline_of_a_full_mask_is_the_image_and_of_half_is_inside():
    extents = mask_outline(np.ones((3, 5), np.uint8)).get_extents()
    np.testing.assert_allclose(extents.extents, [0, 0, 5, 3], atol=1e-3)
    assert mask_outline(np.full((3, 5), 0.5, np.float32)) is not None
    assert mask_outline(np.full((3, 5), 0.49, np.float32)) is None


# Instances


def test_target_has_every_object_and_no_scores():
    found = read_instances(target(), NAMES, score_threshold=0.99)
    assert [item.tag for item in found] == ["person", "ring"]
    assert [item.area for item in found] == [24 * 16, 300]


def test_detections_are_cut_at_the_threshold_and_best_first():
    assert [item.tag for item in read_instances(detection(), NAMES, 0.5)] == ["ring 0.90", "person 0.70"]
    assert len(read_instances(detection(), NAMES, 0.3)) == 3, "a score equal to the threshold counts"


def test_predicted_keypoints_are_drawn_for_persons_only():
    by_name = {item.tag.split()[0]: item for item in read_instances(detection(), NAMES, 0.0)}
    assert len(by_name["person"].keypoints) == 17
    assert len(by_name["ring"].keypoints) == len(by_name["star"].keypoints) == 0
    unnamed = read_instances(detection(), ["background", "a", "b", "c"], 0.0)
    assert all(len(item.keypoints) == 17 for item in unnamed), "without a person every class may have them"


def test_reading_changes_nothing():
    given = detection()
    before = {key: value.clone() for key, value in given.items()}
    read_instances(given, NAMES)
    assert all(torch.equal(given[key], before[key]) for key in given)


def test_a_label_without_a_name_is_named():
    with pytest.raises(ValueError, match="object 1 has label 3.*2 entries.*every label"):
        read_instances(target(), NAMES[:2])


def test_an_image_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(40, 64, 3\).*permute"):
        draw_instances(axes_of(), image().permute(1, 2, 0), target(), NAMES)


# Marks on axes


def test_marks_of_a_target():
    axes = axes_of()
    draw_instances(axes, image(), target(), NAMES, SKELETON)
    assert axes.images[0].get_extent() == [0, W, H, 0], "pixel i covers [i, i+1)"
    assert axes.get_xlim() == (0, W) and axes.get_ylim() == (H, 0)
    assert sorted(boxes_drawn(axes)) == [[8, 8, 24, 32], [36, 10, 56, 30]]
    assert sorted(tags(axes)) == ["person", "ring"]
    edges = {to_hex(p.get_edgecolor()) for p in axes.patches if isinstance(p, Rectangle)}
    assert edges == {label_colour(1).lower(), label_colour(3).lower()}
    fills = [p for p in axes.patches if isinstance(p, PathPatch) and p.get_fill()]
    assert len(fills) == 2 and all(0 < p.get_facecolor()[3] < 0.6 for p in fills), "masks are translucent"


def test_limbs_tell_left_from_right_and_hidden_joints_are_hollow():
    axes = axes_of()
    draw_instances(axes, image(), target(), NAMES, SKELETON)
    limbs = {tuple(line.get_xdata()): line.get_color() for line in axes.lines if len(line.get_xdata()) == 2}
    assert limbs == {(20.5, 22.5): LEFT, (12.5, 10.5): RIGHT, (20.5, 12.5): MIDDLE}
    joints = {float(line.get_xdata()[0]): line for line in axes.lines if len(line.get_xdata()) == 1}
    assert set(joints) == {20.5, 12.5, 22.5, 10.5}, "unlabelled joints are not drawn"
    assert joints[10.5].get_markerfacecolor() != RIGHT and joints[10.5].get_markeredgecolor() == RIGHT
    assert joints[12.5].get_markerfacecolor() == RIGHT


def test_predicted_joints_are_never_hollow():
    axes = axes_of()
    draw_instances(axes, image(), detection(), NAMES, SKELETON)
    joints = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert len(joints) == 17
    assert {line.get_markerfacecolor() for line in joints} == {LEFT, RIGHT, MIDDLE}


def test_limbs_to_an_unlabelled_joint_are_not_drawn():
    truth = target()
    truth["keypoints"][0, 7] = 0
    axes = axes_of()
    draw_instances(axes, image(), truth, NAMES, SKELETON)
    assert len([line for line in axes.lines if len(line.get_xdata()) == 2]) == 2


def test_crowds_are_dashed_and_say_so():
    truth = target() | {"iscrowd": torch.tensor([0, 1])}
    axes = axes_of()
    draw_instances(axes, image(), truth, NAMES)
    assert sorted(tags(axes)) == ["person", "ring (crowd)"]
    solid = {p.get_edgecolor(): p.get_linestyle() for p in axes.patches if isinstance(p, Rectangle)}
    assert len(set(map(str, solid.values()))) == 2


def test_tags_stay_in_the_image_and_avoid_each_other():
    found = detection()
    found["boxes"] = torch.tensor([[40.0, 0, 64, 30], [41, 0, 63, 31], [42, 1, 64, 29]])
    axes = axes_of((6.4, 4))
    draw_instances(axes, image(), found, NAMES, score_threshold=0)
    renderer = axes.figure.canvas.get_renderer() if hasattr(axes.figure.canvas, "get_renderer") else None
    axes.figure.savefig(io.BytesIO(), format="png")
    areas = [text.get_window_extent(renderer).transformed(axes.transData.inverted()) for text in axes.texts]
    assert len(areas) == 3
    for i, area in enumerate(areas):
        assert 0 <= area.x0 and area.x1 <= W and 0 <= min(area.y0, area.y1) and max(area.y0, area.y1) <= H
        assert not any(area.overlaps(other) for other in areas[:i])


@pytest.mark.parametrize("without", [("masks",), ("keypoints",), ("masks", "keypoints")])
def test_models_without_a_branch_can_be_drawn(without):
    found = {key: value for key, value in detection().items() if key not in without}
    axes = axes_of()
    draw_instances(axes, image(), found, NAMES, SKELETON)
    assert sorted(tags(axes)) == ["person 0.70", "ring 0.90"]


def test_classes_have_colours_of_their_own_and_limbs_too():
    colours = [label_colour(label) for label in range(1, 6)] + [LEFT, RIGHT]
    assert len(set(colours)) == 7
    assert label_colour(6) == label_colour(1)


# Truth beside detections


def test_pairs_have_headings_and_their_own_marks():
    sample = (image(), target(), detection())
    figure = truth_and_detections([sample] * 3, NAMES, SKELETON, columns=2, score_threshold=0.8)
    assert len(figure.axes) == 8, "two rows of two pairs; the last pair is blank"
    assert figure.axes[0].get_title("left") == "ground truth"
    assert "0.8" in figure.axes[1].get_title("left")
    assert tags(figure.axes[1]) == ["ring 0.90"] and sorted(tags(figure.axes[0])) == ["person", "ring"]
    assert not figure.axes[6].images and figure.legends


def test_pictures_keep_their_shape_whatever_their_size():
    wide, tall = (
        (image(), target(), detection()),
        (image(90, 30), empty_target(90, 30), empty_detection(90, 30)),
    )
    figure = truth_and_detections([wide, tall], NAMES, columns=1)
    figure_png(figure)
    for axes, ratio in zip(figure.axes, (H / W, H / W, 3, 3), strict=True):
        box = axes.get_window_extent()
        assert box.height / box.width == pytest.approx(ratio, rel=0.02)
    widths = [axes.get_window_extent().width for axes in figure.axes]
    assert max(widths) - min(widths) < 1, "every picture fills its column"
    assert not figure.legends, "no skeleton, no legend of limbs"


def test_empty_truth_and_empty_detections():
    figure = truth_and_detections([(image(), empty_target(), empty_detection())], NAMES, SKELETON)
    assert [tags(axes) for axes in figure.axes] == [[], []]
    assert len(figure_png(figure)) > 1000


def test_no_samples_is_said():
    with pytest.raises(ValueError, match="at least one"):
        truth_and_detections([], NAMES)


# Curves


def history(offset=0.0):
    return [
        {
            "step": s,
            "lr": 0.1,
            "loss": 5 + offset,
            "loss_box": 2.0,
            "loss_mask": 3.0 + offset,
            "grad_norm": 1.0,
        }
        for s in range(10, 60, 10)
    ]


def test_loss_panels_have_the_total_each_loss_and_both_runs():
    figure = loss_curves({"RoIAlign": history(), "RoIPool": history(1.0)}, smooth=3)
    assert [axes.get_title("left") for axes in figure.axes] == ["total", "box", "mask"]
    raw_a, mean_a, raw_b, mean_b = figure.axes[0].lines
    assert list(raw_a.get_xdata()) == [10, 20, 30, 40, 50]
    assert list(mean_b.get_ydata()) == [6.0] * 5
    assert raw_a.get_alpha() < 0.5 and mean_a.get_alpha() is None
    assert raw_a.get_color() == mean_a.get_color() != raw_b.get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["RoIAlign", "RoIPool"]
    assert figure.axes[-1].get_xlabel() == "step" and figure.axes[0].get_ylim()[0] == 0


def test_loss_curves_of_an_unknown_loss_and_of_nothing():
    row = {"step": 1, "loss": 1.0, "loss_dice": 1.0}
    assert [a.get_title("left") for a in loss_curves({"run": [row]}).axes] == ["total", "loss_dice"]
    assert loss_curves({}).axes == [] and loss_curves({"run": []}).axes == []


def test_moving_average():
    np.testing.assert_allclose(moving_average(np.array([0.0, 3, 6]), 3), [1.5, 3, 4.5])
    np.testing.assert_allclose(moving_average(np.array([1.0, 5]), 9), [3, 3])
    np.testing.assert_allclose(moving_average(np.ones(7), 4), 1)


def test_ap_panels():
    falling = [0.9 - 0.08 * i for i in range(10)]
    panels = {"box": {"RoIAlign": falling, "RoIPool": [-1.0] * 10}, "keypoints": {"RoIAlign": falling}}
    figure = ap_against_iou(panels, "AP & IoU")
    box, points = figure.axes
    assert (box.get_xlabel(), points.get_xlabel()) == ("IoU threshold", "OKS threshold")
    np.testing.assert_allclose(box.lines[0].get_ydata(), [100 * value for value in falling])
    np.testing.assert_allclose(box.lines[0].get_xdata(), np.arange(0.5, 0.96, 0.05))
    assert np.isnan(box.lines[1].get_ydata()).all(), "undefined is not zero"
    assert [t.get_text() for t in box.get_legend().get_texts()] == ["RoIAlign, AP 54.0", "RoIPool, AP n/a"]
    assert figure.get_suptitle() == "AP & IoU"


def test_ap_of_runs_alone_is_one_panel():
    assert len(ap_against_iou({"RoIAlign": [0.5] * 10, "RoIPool": [0.4] * 10}).axes) == 1


def test_ap_of_another_length_is_refused():
    with pytest.raises(ValueError, match="RoIPool has 3 APs"):
        ap_against_iou({"mask": {"RoIPool": [0.1, 0.2, 0.3]}})


# Two RoI layers


def verdict_counts(axes):
    pixels = np.asarray(axes.images[1].get_array())
    colours = [tuple(bytes.fromhex(colour[1:])) for colour in VERDICTS]
    shown = pixels[pixels[..., 3] > 0][:, :3]
    return [int((shown == colour).all(axis=1).sum()) for colour in colours]


def test_comparison_counts_pixels():
    shifted = detection(shift=2)
    shifted["masks"][0, 0, :10] = 0  # two rows of 16 less: missed and surplus pixels differ in number
    figure = compare_ops([(image(), target())], [detection()], [shifted], class_names=NAMES)
    truth, align, pool = figure.axes
    assert truth.get_title("left") == "person", "the larger object, 384 against 300 pixels"
    assert verdict_counts(align) == [384, 0, 0]
    assert verdict_counts(pool) == [22 * 14, 384 - 22 * 14, 22 * 2]  # right, missed, too much
    assert align.get_title("left") == "mask IoU 1.00"
    assert pool.get_title("left") == f"mask IoU {22 * 14 / (384 + 22 * 2):.2f}"
    assert truth.get_xlim() == align.get_xlim() == pool.get_xlim()
    low, high = align.get_xlim()
    assert low <= 8 and 24 <= high and high - low < W, "zoomed on the object"
    assert [text.get_text() for text in figure.texts] == ["ground truth", "RoIAlign", "RoIPool"]


def test_comparison_takes_the_best_score_of_the_class_that_fits():
    found = detection(shift=1)
    found["boxes"][2], found["labels"][2], found["scores"][2] = target()["boxes"][0], 1, 0.99
    found["masks"][2] = 0
    figure = compare_ops([(image(), target())], [found], [detection(shift=14)])
    assert figure.axes[1].get_title("left") == "mask IoU 0.00", "the best-scored, not the best mask"
    assert figure.axes[2].get_title("left") == "not found", "a box IoU below 0.5 is another object"


def test_comparison_leaves_out_crowds_and_empty_images():
    crowd = target() | {"iscrowd": torch.tensor([1, 0])}
    samples = [(image(), empty_target()), (image(), crowd)]
    figure = compare_ops(samples, [empty_detection(), detection()], [empty_detection()] * 2, class_names=NAMES)
    assert len(figure.axes) == 3 and figure.axes[0].get_title("left") == "ring"
    both = target() | {"iscrowd": torch.tensor([1, 1])}
    with pytest.raises(ValueError, match="no image has an object"):
        compare_ops([(image(), both)], [detection()], [detection()])
    with pytest.raises(ValueError, match="no image has an object"):
        compare_ops(samples[:1], [empty_detection()], [empty_detection()])
    with pytest.raises(ValueError, match="2 samples, 1 and 2 detections"):
        compare_ops(samples, [detection()], [detection()] * 2)


# Photos


@pytest.mark.parametrize(
    ("size", "expected"), [((40, 64), (400, 640)), ((400, 611), (400, 611)), ((383, 399), (766, 798))]
)
def test_annotated_photos_have_the_photos_size_or_a_multiple(size, expected):
    photo = annotated(image(*size), empty_detection(*size), NAMES)
    assert photo.size == expected[::-1] and photo.mode == "RGB"


def test_annotations_change_the_mask_and_leave_the_rest(tmp_path):
    picture = torch.rand(3, H, W, generator=torch.Generator().manual_seed(0))
    save_annotated(picture, detection(), NAMES, SKELETON, tmp_path / "new" / "photo.png", min_pixels=400)
    with Image.open(tmp_path / "new" / "photo.png") as photo:
        assert photo.format == "PNG"
        drawn = np.asarray(photo).astype(int)
    plain = (picture.permute(1, 2, 0).numpy() * 255).round().repeat(10, axis=0).repeat(10, axis=1).astype(int)
    changed = (drawn != plain).any(axis=2)
    assert changed[100:150, 360:410].mean() > 0.99, "in the ring's mask"
    assert not changed[180:230, 440:480].any(), "in the ring's hole"
    assert not changed[360:, :].any() and not changed[:, 600:].any(), "away from the marks, to the bit"
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["photo.png"]


def test_a_failed_write_leaves_the_old_photo(tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    path.write_bytes(b"old")

    def broken(self, file, format):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        save_annotated(image(), detection(), NAMES, [], path)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["photo.png"]


def test_weak_detections_are_left_out_of_photos():
    plain = np.asarray(annotated(image(), empty_detection(), NAMES))
    weak = detection() | {"scores": torch.tensor([0.4, 0.4, 0.4])}
    np.testing.assert_array_equal(np.asarray(annotated(image(), weak, NAMES)), plain)
    assert (np.asarray(annotated(image(), weak, NAMES, score_threshold=0.3)) != plain).any()


# The poster


def tiny(**fields):
    few = {"keypoints": 17, "detections_per_image": 6}  # so that drawing is quick
    return build_model("tiny-fpn", num_classes=4, **(few | fields))


def headings(figure):
    return [cell.texts[1].get_text() for cell in figure.subfigs if cell.texts]


def test_poster_of_an_untrained_model():
    model = tiny().train()
    picture = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))
    figure = stage_poster(model, picture, NAMES, SKELETON, score_threshold=0.05)
    assert headings(figure) == [
        "image", "feature pyramid", "anchors", "before NMS", "after NMS", "RoIAlign", "class of each RoI", "masks",
        "keypoints", "result",
    ]  # fmt: skip
    assert model.training, "the mode is put back"
    assert all(parameter.grad is None for parameter in model.parameters())
    shown = rendered(figure)
    assert shown.std() > 20 and shown.shape[1] > shown.shape[0]
    assert [axes.images[0].get_array().shape for axes in figure.subfigs[1].axes] == [
        (24, 32),
        (12, 16),
        (6, 8),
        (3, 4),
    ]


@pytest.mark.parametrize(
    ("model", "count", "op"),
    [
        (lambda: tiny(masks=False, keypoints=0), 8, "RoIAlign"),
        (lambda: tiny(roi_op="pool"), 10, "RoIPool"),
        (lambda: build_model("tiny-c4", num_classes=4, detections_per_image=6), 9, "RoIAlign"),
    ],
)
def test_poster_of_other_models(model, count, op):
    figure = stage_poster(model(), image(64, 96), NAMES)
    assert len(headings(figure)) == count and op in headings(figure)
    figure_png(figure)


def test_poster_without_any_detection():
    figure = stage_poster(tiny(score_threshold=1.0), image(64, 64), NAMES, SKELETON)
    said = [text.get_text() for cell in figure.subfigs for text in cell.texts]
    assert "no detections" in said and "no person is found here" in said
    figure_png(figure)


def test_stages_agree_with_the_model_and_are_in_the_images_own_pixels():
    model = tiny(min_size=128, max_size=200, score_threshold=0.0).eval()  # 64 x 80 is magnified twofold
    picture = torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(1))
    stages = run_stages(model, picture)
    with torch.no_grad():
        expected = model([picture])[0]
    for key, value in expected.items():
        torch.testing.assert_close(stages.detection[key], value)
    for boxes in (stages.before, stages.after, stages.rois):
        assert len(boxes) and (boxes >= 0).all() and (boxes <= torch.tensor([80, 64, 80, 64])).all()
    centres = (stages.anchors[0][:, :2] + stages.anchors[0][:, 2:]) / 2
    torch.testing.assert_close(centres[0], torch.tensor([1.0, 1.0]))  # stride 4 of the batch is 2 pixels here
    assert stages.before[:, 2:].max() > 60, "they reach over the whole image"
    torch.testing.assert_close(stages.classes.sum(dim=1), torch.ones(len(stages.rois)))
    torch.testing.assert_close(stages.heatmaps.sum(dim=(2, 3)), torch.ones(stages.heatmaps.shape[:2]))


# The reader's session


def test_pyplot_and_the_readers_settings_are_left_alone():
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"figure.facecolor": "black", "text.color": "white", "savefig.bbox": "tight"}):
        figure = truth_and_detections([(image(), target(), detection())], NAMES)
        dark = rendered(figure)
    np.testing.assert_array_equal(dark, rendered(truth_and_detections([(image(), target(), detection())], NAMES)))
    assert dict(matplotlib.rcParams) == before
    code = "import sys, mrcnn_scratch.visualize, mrcnn_scratch.report; print('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_figures_are_the_same_bytes_every_time():
    pngs = {figure_png(truth_and_detections([(image(), target(), detection())], NAMES)) for _ in range(2)}
    assert len(pngs) == 1
