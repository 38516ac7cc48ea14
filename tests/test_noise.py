"""Noise that stands in for a data set: shaped as one, the same for the same seed, and plausible."""

import pytest
import torch

from mrcnn_scratch import box_iou, build_model
from mrcnn_scratch.datasets.noise import LARGEST, OBJECTS, SMALLEST, NoiseDataset


@pytest.fixture(scope="module")
def noise() -> NoiseDataset:
    return NoiseDataset((90, 150), num_classes=5, num_keypoints=17, images=40, seed=3)


def test_a_sample_is_shaped_as_a_data_sets(noise):
    image, target = noise[0]
    assert image.shape == (3, 90, 150) and image.dtype == torch.float32 and 0 <= image.min() < image.max() <= 1
    assert target["boxes"].shape == (OBJECTS, 4) and target["masks"].shape == (OBJECTS, 90, 150)
    assert target["masks"].dtype == torch.uint8 and set(target["masks"].unique().tolist()) == {0, 1}
    assert target["keypoints"].shape == (OBJECTS, 17, 3) and (target["keypoints"][..., 2] == 2).all()
    assert target["labels"].dtype == torch.int64 and not target["iscrowd"].any()
    assert len(noise) == 40 and noise.num_classes == 5 == len(noise.class_names)
    assert (1, 2) in noise.flip_pairs and NoiseDataset((9, 9), num_keypoints=3).flip_pairs == []
    assert "keypoints" not in NoiseDataset((90, 150))[0][1]


def test_objects_are_plausible(noise):
    boxes = torch.cat([noise[i][1]["boxes"] for i in range(len(noise))])
    size = boxes[:, 2:] - boxes[:, :2]
    assert (boxes >= 0).all() and (boxes <= torch.tensor([150, 90, 150, 90])).all() and (size > 0).all()
    side = size.prod(dim=1).sqrt() / 90
    assert SMALLEST <= side.min() < 0.05 and 0.4 < side.max() <= LARGEST
    middle = (SMALLEST * LARGEST) ** 0.5  # as many small as large ones
    assert 0.4 < (side < middle).float().mean() < 0.6
    ratio = size[:, 0] / size[:, 1]
    assert 0.5 - 1e-4 <= ratio.min() < 0.6 and 1.7 < ratio.max() <= 2 + 1e-4
    labels = torch.cat([noise[i][1]["labels"] for i in range(len(noise))])
    assert set(labels.tolist()) == {1, 2, 3, 4}


def test_masks_fill_their_boxes_and_keypoints_lie_in_them(noise):
    _, target = noise[1]
    for box, mask, area, points in zip(*(target[n] for n in ("boxes", "masks", "area", "keypoints")), strict=True):
        rows, columns = mask.nonzero(as_tuple=True)
        assert rows.min() + 1 > box[1] and rows.max() < box[3] and columns.min() + 1 > box[0] and columns.max() < box[2]
        assert abs(float(mask.sum()) - float(area)) <= 0.1 * float(area) + 3
        assert (points[:, :2] >= box[:2]).all() and (points[:, :2] <= box[2:]).all()


def test_an_object_smaller_than_a_pixel_has_one():
    tiny = NoiseDataset((16, 16), images=5)
    assert all((tiny[i][1]["masks"].sum(dim=(1, 2)) >= 1).all() for i in range(5))


def test_the_same_seed_gives_the_same_and_no_other(noise):
    again = NoiseDataset((90, 150), num_classes=5, num_keypoints=17, images=40, seed=3)
    assert torch.equal(noise[5][0], again[5][0]) and torch.equal(noise[5][1]["boxes"], again[5][1]["boxes"])
    other = NoiseDataset((90, 150), num_classes=5, num_keypoints=17, images=40, seed=4)
    assert not torch.equal(noise[5][0], other[5][0]) and not torch.equal(noise[5][0], noise[6][0])


@pytest.mark.parametrize("number", [1, 9, 300])
def test_proposals_of_an_rpn_trained_apart(number):
    _, target = NoiseDataset((90, 150), images=5, proposals=number)[0]
    proposals = target["proposals"]
    assert proposals.shape == (number, 4) and (proposals[:, 2:] > proposals[:, :2]).all()
    assert (proposals >= 0).all() and (proposals <= torch.tensor([150, 90, 150, 90])).all()
    best = box_iou(proposals, target["boxes"]).max(dim=1).values
    near = best[: number // 2]
    assert (near > 0.6).all() and (number < 300 or (near < 0.95).any() and best.min() < 0.1)
    assert "proposals" not in NoiseDataset((90, 150))[0][1]


def test_heads_alone_learn_from_it():
    noise = NoiseDataset((90, 150), num_classes=5, images=5, proposals=50)
    model = build_model("tiny-fpn", 5, stages="heads")
    losses = model([noise[0][0]], [noise[0][1]], torch.Generator().manual_seed(0))
    assert len(losses) == 3 and all(loss.isfinite() and loss > 0 for loss in losses.values())


def test_a_model_learns_from_it(noise):
    model = build_model("tiny-fpn", 5, keypoints=17)
    images, targets = zip(noise[0], noise[1], strict=True)
    losses = model(list(images), list(targets), torch.Generator().manual_seed(0))
    assert all(loss.isfinite() and loss > 0 for loss in losses.values()) and len(losses) == 6
