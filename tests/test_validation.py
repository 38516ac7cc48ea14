"""Errors that say which image, which object, which value, and what to do."""

import pytest
import torch

from mrcnn_scratch.validation import check_images, check_targets

IMAGE = torch.rand(3, 20, 30)


def target(**changes):
    good = {
        "boxes": torch.tensor([[1.0, 2, 11, 12], [3, 4, 8, 9]]),
        "labels": torch.tensor([1, 3]),
        "masks": torch.ones(2, 20, 30, dtype=torch.uint8),
        "keypoints": torch.ones(2, 5, 3),
    }
    good.update(changes)
    return {name: value for name, value in good.items() if value is not None}


def check(*targets, images=None, num_classes=4, masks=True, keypoints=5):
    check_targets(list(targets), images or [IMAGE] * len(targets), num_classes, masks, keypoints)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "images is an empty list: give a list of at least one"),
        (torch.rand(2, 3, 4, 4), r"images is a tensor of shape \(2, 3, 4, 4\): give a list"),
        ([IMAGE, torch.rand(4, 4)], r"image 1 is \(4, 4\): give a \(3, H, W\) tensor"),
        ([IMAGE, torch.rand(20, 30, 3)], r"image 1 is \(20, 30, 3\): give a \(3, H, W\) tensor, red, green, blue"),
        ([torch.rand(1, 4, 4)], r"image 0 is \(1, 4, 4\)"),
        ([torch.rand(3, 0, 4)], r"image 0 is \(3, 0, 4\)"),
        ([IMAGE.numpy()], "image 0 is ndarray: give a"),
        (None, "images is None: give a list"),
        (5, "images is a int: give a list"),
        ([IMAGE, (IMAGE * 255).byte()], r"image 1 has dtype torch.uint8: convert it to float and divide by 255"),
        ([IMAGE * 0 + 255.0], r"image 0 has values 255..255: give intensities in 0..1 \(divide by 255\)"),
        ([IMAGE - 2], r"image 0 has values -2..-1"),
        ([IMAGE, IMAGE, IMAGE * float("nan")], "image 2 has values nan..nan"),
    ],
)
def test_images(images, message):
    with pytest.raises(ValueError, match=message):
        check_images(images)


def test_good_images_pass():
    check_images([IMAGE, IMAGE.double(), torch.zeros(3, 1, 1), torch.full((3, 2, 2), 1.0005)])  # resampling overshoots


def box(row, values):
    boxes = target()["boxes"].clone()
    boxes[row] = torch.tensor(values)
    return boxes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": None}, "image 0: the target has no 'boxes', which this model needs"),
        ({"labels": None}, "image 0: the target has no 'labels'"),
        ({"masks": None}, "image 0: the target has no 'masks'"),
        ({"keypoints": None}, "image 0: the target has no 'keypoints'"),
        (
            {"boxes": torch.zeros(0)},
            r"image 0: boxes are \(0,\) torch.float32: give \(G, 4\) float xyxy; none is \(0, 4\)",
        ),
        ({"boxes": torch.ones(2, 4).long()}, r"boxes are \(2, 4\) torch.int64"),
        ({"boxes": torch.ones(2, 5)}, r"boxes are \(2, 5\)"),
        (
            {"boxes": box(1, [3, 4, 3, 9])},
            r"image 0: box 1 is \[3.0, 4.0, 3.0, 9.0\], x2 > x1 and y2 > y1 are required: drop or correct this object",
        ),
        ({"boxes": box(0, [3, 9, 7, 4])}, r"box 0 is \[3.0, 9.0, 7.0, 4.0\]"),  # also xywh that is not xyxy
        ({"boxes": box(1, [3, 4, float("nan"), 9])}, r"box 1 is \[3.0, 4.0, nan, 9.0\], it is not finite"),
        ({"boxes": box(1, [3, 4, float("inf"), 9])}, "it is not finite"),
        ({"labels": torch.tensor([1])}, r"labels are \(1,\) torch.int64: give \(2,\) int64, one per box"),
        ({"labels": torch.tensor([1.0, 2.0])}, r"labels are \(2,\) torch.float32"),
        ({"labels": torch.tensor([1, 0])}, "label 1 is 0: labels run from 1 to 3, 0 is the background"),
        ({"labels": torch.tensor([4, 1])}, "label 0 is 4: labels run from 1 to 3"),
        ({"masks": torch.ones(2, 30, 20).byte()}, r"masks are \(2, 30, 20\), boxes and image ask for \(2, 20, 30\)"),
        ({"masks": torch.ones(1, 20, 30).byte()}, r"masks are \(1, 20, 30\)"),
        (
            {"masks": torch.stack([torch.ones(20, 30), torch.ones(20, 30) * 255]).byte()},
            r"image 0: mask 1 has values 255..255: give 0 and 1 \(masks > 0\)",
        ),
        ({"masks": torch.full((2, 20, 30), float("nan"))}, "mask 0 has values nan..nan"),
        ({"masks": -torch.ones(2, 20, 30)}, "mask 0 has values -1..-1"),
        ({"keypoints": torch.ones(2, 4, 3)}, r"keypoints are \(2, 4, 3\), boxes and image ask for \(2, 5, 3\)"),
        ({"keypoints": torch.ones(2, 5, 3).long()}, "keypoints have dtype torch.int64: convert them to float"),
        ({"keypoints": torch.full((2, 5, 3), float("nan"))}, "keypoints of object 0 are not finite: give 0, 0, 0"),
        ({"iscrowd": torch.zeros(3)}, r"iscrowd are \(3,\), boxes and image ask for \(2,\): give one entry per box"),
        ({"boxes": box(1, [30, 4, 35, 9])}, r"box 1 is \[30.0, 4.0, 35.0, 9.0\], outside the 30 x 20 image"),
        ({"boxes": box(0, [3, -9, 7, 0])}, "box 0 is .* outside the 30 x 20 image: drop or correct it"),
        ({"keypoints": torch.full((2, 5, 3), 9.0)}, r"visibilities of object 0 are \[9.0\]: give 0, 1 .hidden. or 2"),
        ({"boxes": [[3.0, 4.0, 7.0, 9.0]]}, "boxes is a list: convert it to a torch.Tensor"),
        ({"iscrowd": [0, 0]}, "iscrowd is a list"),
    ],
)
def test_targets(changes, message):
    with pytest.raises(ValueError, match=message):
        check(target(**changes))


def test_the_image_is_named_by_position_and_by_id():
    with pytest.raises(ValueError, match=r"image 2 \(image_id 139\): label 0 is 9"):
        check(target(), target(), target(labels=torch.tensor([9, 1]), image_id=torch.tensor(139)))


def test_as_many_targets_as_images():
    with pytest.raises(ValueError, match="2 images and 1 targets: give one dictionary per image"):
        check(target(), images=[IMAGE, IMAGE])
    with pytest.raises(ValueError, match=r"in training mode and targets is None: pass targets, or call model.eval\(\)"):
        check_targets(None, [IMAGE], 4, True, 0)


def test_good_targets_pass():
    check(target(), target(iscrowd=torch.tensor([0, 1])), target(masks=torch.ones(2, 20, 30, dtype=torch.bool)))
    check(target(boxes=target()["boxes"].double(), masks=torch.rand(2, 20, 30)))
    # what the model has no branch for is not asked for
    check(target(masks=None, keypoints=None), masks=False, keypoints=0)
    empty = target(
        boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64),
        masks=torch.zeros(0, 20, 30), keypoints=torch.zeros(0, 5, 3),
    )  # fmt: skip
    check(empty)
