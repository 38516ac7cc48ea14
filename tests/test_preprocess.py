"""Images of any size into one batch, and targets with them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_scratch.preprocess import batch_images, resized_size, scale_target

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),  # 800 / 480 = 1.6667; 640 * 1.6667 = 1066.7, rounded
        ((640, 480), (1067, 800)),
        ((400, 1200), (444, 1333)),  # 800 / 400 = 2 would make 2400: 1333 / 1200 = 1.1108 instead
        ((800, 1333), (800, 1333)),
        ((1600, 1600), (800, 800)),
        ((1, 5000), (1, 1333)),  # never nothing
    ],
)
def test_resize_rule(size, expected):
    assert resized_size(size, 800, 1333) == expected


@given(st.integers(1, 3000), st.integers(1, 3000))
@settings(max_examples=100, deadline=None)
def test_one_edge_is_as_asked_and_none_is_longer(height, width):
    new = resized_size((height, width), 800, 1333)
    assert min(new) == 800 or max(new) == 1333
    assert max(new) <= 1333 and min(new) <= 800 and min(new) >= 1
    assert resized_size((height, width), 0, 10) == (height, width)


def test_padding_is_zero_after_normalising_and_up_to_a_multiple_of_32():
    # Zeros before normalising would be black, (0 - mean) / std, an edge that the network sees.
    images = [torch.full((3, 20, 33), 0.7), torch.full((3, 40, 10), 0.4)]
    batch = batch_images(images, 0, 0, MEAN, STD)
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.sizes == batch.original_sizes == [(20, 33), (40, 10)]
    torch.testing.assert_close(batch.images[0, :, 19, 32], torch.tensor([1.0, 1.2, 0.8]))  # (0.7 - mean) / std
    assert not batch.images[0, :, 20:].any() and not batch.images[0, :, :, 33:].any()
    assert not batch.images[1, :, 40:].any() and not batch.images[1, :, :, 10:].any()
    assert not batch.images[1, 1].any()  # 0.4 is the second channel's mean


def test_an_exact_multiple_is_not_padded():
    assert batch_images([torch.rand(3, 64, 96)], 0, 0, MEAN, STD).images.shape == (1, 3, 64, 96)


def test_resized_images_keep_their_content():
    # half as large: each pixel the mean of 2 x 2
    image = torch.rand(3, 80, 120)
    batch = batch_images([image], 40, 60, (0, 0, 0), (1, 1, 1))
    assert batch.sizes == [(40, 60)] and batch.images.shape == (1, 3, 64, 64)
    expected = torch.nn.functional.avg_pool2d(image, 2)
    torch.testing.assert_close(batch.images[0, :, :40, :60], expected, atol=1e-5, rtol=0)


def test_ratios_are_per_axis_and_from_the_rounded_sizes():
    # 480 x 640 -> 800 x 1067: 1.66667 down, 1.667188 across
    batch = batch_images([torch.rand(3, 48, 64)], 80, 1333, MEAN, STD)
    assert batch.sizes == [(80, 107)]
    assert batch.ratios(0) == (107 / 64, 80 / 48)


def test_dtype_follows_the_images():
    assert batch_images([torch.rand(3, 8, 8, dtype=torch.float64)], 0, 0, MEAN, STD).images.dtype == torch.float64


def target():
    masks = torch.zeros(2, 6, 9, dtype=torch.uint8)
    masks[0, 2:4, 3:6] = 1
    masks[1, :, 8] = 1
    return {
        "boxes": torch.tensor([[3.0, 2, 6, 4], [8, 0, 9, 6]]),
        "labels": torch.tensor([1, 2]),
        "masks": masks,
        "keypoints": torch.tensor([[[4.5, 2.5, 2], [0, 0, 0]], [[8.5, 0.5, 1], [8.5, 5.5, 2]]]),
        "image_id": 7,
    }


def test_everything_scales_by_its_own_axis():
    scaled = scale_target(target(), (2.0, 3.0), (18, 18))  # twice across, three times down
    assert scaled["boxes"].tolist() == [[6, 6, 12, 12], [16, 0, 18, 18]]
    # keypoints are continuous: the centre of pixel (4, 2) lands on the centre of its 2 x 3 block
    assert scaled["keypoints"].tolist() == [[[9, 7.5, 2], [0, 0, 0]], [[17, 1.5, 1], [17, 16.5, 2]]]
    expected = target()["masks"].repeat_interleave(3, 1).repeat_interleave(2, 2)
    assert torch.equal(scaled["masks"], expected) and scaled["masks"].dtype == torch.uint8
    assert scaled["image_id"] == 7 and torch.equal(scaled["labels"], torch.tensor([1, 2]))


def test_masks_do_not_drift_when_they_shrink():
    # A third as large: each block of three is read at its middle. Reading its corner moves masks by a third of a cell.
    masks = torch.zeros(1, 42, 42, dtype=torch.uint8)
    masks[0, 13:29, 13:29] = 1
    shrunk = scale_target({"boxes": torch.tensor([[13.0, 13, 29, 29]]), "masks": masks}, (1 / 3, 1 / 3), (14, 14))
    y = torch.where(shrunk["masks"][0].any(1))[0]
    assert (int(y.min()), int(y.max()) + 1) == (4, 10)  # around 7, the middle of 14
    torch.testing.assert_close(shrunk["boxes"], torch.tensor([[13.0, 13, 29, 29]]) / 3)


def test_the_callers_target_is_left_alone_and_size_one_is_free():
    original = target()
    scale_target(original, (2.0, 3.0), (18, 18))
    assert torch.equal(original["boxes"], target()["boxes"]) and original["masks"].shape == (2, 6, 9)
    assert scale_target(original, (1.0, 1.0), (6, 9)) is original


def test_no_objects():
    empty = {
        "boxes": torch.zeros(0, 4),
        "masks": torch.zeros(0, 6, 9, dtype=torch.uint8),
        "keypoints": torch.zeros(0, 2, 3),
    }
    scaled = scale_target(empty, (2.0, 3.0), (18, 18))
    assert (
        scaled["boxes"].shape == (0, 4)
        and scaled["masks"].shape == (0, 18, 18)
        and scaled["keypoints"].shape == (0, 2, 3)
    )
