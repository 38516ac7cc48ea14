"""Pasting: the compiled version against the readable one, both against torchvision; edges and errors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pasting_cases import ATOL, FLOATS, random_case, readable
from torchvision.models.detection import roi_heads

from mrcnn_scratch import pasting, pasting_cpu
from mrcnn_scratch.pasting import paste_masks, paste_masks_torch

# ------------------------------------------------------------------------------------ against the readable version


sides = st.one_of(st.floats(-60, 160), st.integers(-20, 70).map(float), st.floats(-1e30, 1e30))
a_box = st.tuples(sides, sides, sides, sides)
near_box = st.tuples(sides, sides, st.floats(0, 3), st.floats(0, 3)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(a_box, near_box), max_size=4),
    st.integers(0, 40),
    st.integers(0, 60),
    st.integers(1, 30),
    st.booleans(),
    st.sampled_from(FLOATS),
    st.integers(0, 9),
)
def test_compiled_and_readable_agree(boxes, height, width, cells, legacy, dtype, seed):
    boxes = torch.tensor(boxes, dtype=dtype).view(-1, 4)
    masks = torch.rand(len(boxes), cells, cells, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    got, wanted = paste_masks(masks, boxes, (height, width), legacy), readable(masks, boxes, (height, width), legacy)
    assert got.dtype == dtype and got.shape == (len(boxes), height, width)
    torch.testing.assert_close(got, wanted, rtol=0, atol=ATOL[dtype])
    assert got.numel() == 0 or (got.min() >= 0 and got.max() <= 1)
    for threshold in (0.5, 0.123456789):
        cut = paste_masks(masks, boxes, (height, width), legacy, threshold)
        assert cut.dtype == torch.bool and torch.equal(cut, got >= threshold)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("cells", [1, 2, 7, 14, 56])
def test_any_number_of_cells_and_masks_that_are_not_square(cells, legacy):
    masks, boxes = random_case(20, (50, 70), torch.float64, cells=cells)
    for part in (masks, masks[:, : cells // 2 + 1], masks.transpose(1, 2)[:, ::2]):  # also not contiguous
        got, wanted = paste_masks(part, boxes, (50, 70), legacy), readable(part, boxes, (50, 70), legacy)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
        assert got.any()


def test_the_example_of_the_docstring():
    got = paste_masks(torch.tensor([[[0.0, 1.0]]]), torch.tensor([[1.0, 0, 5, 1]]), (1, 6))
    assert got.flatten().tolist() == [0, 0, 0.25, 0.75, 0.75, 0]


def test_float32_is_right_to_its_last_digits():
    # places are float64: only the blending rounds
    masks, boxes = random_case(30, (300, 400))
    boxes[0] = torch.tensor([-2e5, -1e6, 3e5, 2e6])  # of which the image shows far less than a cell
    for legacy in (False, True):
        exact = boxes.double() if not legacy else pasting._legacy_boxes(boxes, 28)
        wanted = paste_masks_torch(masks.double(), exact, (300, 400), int(legacy))
        got = paste_masks(masks, boxes, (300, 400), legacy).double()
        torch.testing.assert_close(got, wanted, rtol=0, atol=3e-7)


def test_a_constant_mask_stays_constant_and_nothing_exceeds_one():
    masks, boxes = torch.ones(40, 28, 28), random_case(40, (60, 80))[1]
    got = paste_masks(masks, boxes, (60, 80))
    assert got.max() == 1 and got.min() == 0
    inner = paste_masks(masks[:1] * 0.3, torch.tensor([[-900.0, -900, 900, 900]]), (60, 80))
    assert torch.equal(inner, torch.full((1, 60, 80), 0.3))


# ------------------------------------------------------------------------------------ against torchvision


def torchvisions(masks, boxes, size):
    """None where torchvision fails, as it does for boxes outside the image: it expects them to be clipped."""
    try:
        return roi_heads.paste_masks_in_image(masks[:, None], boxes, size)[:, 0]
    except RuntimeError:
        return None


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [(90, 150), (240, 320), (1, 1), (1, 40), (30, 1)])
def test_legacy_is_torchvisions(dtype, size):
    masks, boxes = random_case(100, size, dtype, seed=1)
    compared = 0
    for mask, box in zip(masks.split(1), boxes.split(1), strict=True):
        if (wanted := torchvisions(mask, box, size)) is not None:
            got = paste_masks(mask, box, size, legacy=True)
            torch.testing.assert_close(got, wanted, rtol=0, atol=ATOL[dtype])
            compared += 1
    assert compared > 60


@pytest.mark.parametrize("dtype", FLOATS)
def test_legacy_takes_torchvisions_integers(dtype):
    # With sides of 14 and 28 pixels the grown corners are whole numbers, or nearly: rounding decides on a pixel.
    sides = torch.arange(1, 60, dtype=dtype) * 14
    corners = torch.arange(7, dtype=dtype)[:, None] * 3.1
    x1, side = (corners + 0 * sides).flatten().round(), (sides + 0 * corners).flatten()
    boxes = torch.stack([x1, x1 + 1, x1 + side, x1 + 1 + side], 1)
    for cells in (14, 28):
        wanted = roi_heads.expand_boxes(boxes, (cells + 2) / cells).to(torch.int64)
        wanted[:, 2:] += 1
        assert torch.equal(pasting._legacy_boxes(boxes, cells).long(), wanted)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "box",
    [
        [-20.5, -7, 30, 40.2],  # over a corner
        [-500.0, -300, 900, 700],  # over every border
        [100.0, 60, 180, 130],
        [149.2, 89.1, 149.9, 89.8],  # a part of the last pixel
        [10.2, 10.2, 10.6, 10.6],  # less than a pixel
        [20.0, 20, 20, 20],  # nothing: torchvision paints a pixel
        [40.0, 50, 30, 20],  # the wrong way round
        [-1e6, -1e6, 1e6, 1e6],
    ],
)
def test_legacy_boxes_that_are_odd(box, dtype):
    size = (90, 150)
    masks, boxes = random_case(1, size, dtype)[0], torch.tensor([box], dtype=dtype)
    if max(map(abs, box)) > 1e5:  # torchvision resizes the mask to the whole box
        wanted = readable(masks, boxes, size, legacy=True)
    else:
        wanted = torchvisions(masks, boxes, size)
    torch.testing.assert_close(paste_masks(masks, boxes, size, legacy=True), wanted, rtol=0, atol=ATOL[dtype])


def test_legacy_on_a_whole_photo():
    masks, boxes = random_case(12, (480, 640), seed=4)
    boxes = boxes.clamp(min=0).minimum(torch.tensor([640.0, 480, 640, 480]))  # as detections are
    wanted = torchvisions(masks, boxes, (480, 640))
    got = paste_masks(masks, boxes, (480, 640), legacy=True)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    assert float(((got >= 0.5) != (wanted >= 0.5)).float().mean()) < 1e-5


# ------------------------------------------------------------------------------------ edges and errors


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_to_paste(legacy):
    for cells in (1, 28):
        none = paste_masks(torch.zeros(0, cells, cells), torch.zeros(0, 4), (6, 7), legacy)
        assert none.shape == (0, 6, 7) and none.dtype == torch.float32
    cut = paste_masks(torch.zeros(0, 28, 28, dtype=torch.float64), torch.zeros(0, 4), (6, 7), legacy, 0.5)
    assert cut.shape == (0, 6, 7) and cut.dtype == torch.bool
    assert paste_masks(torch.ones(2, 28, 28), torch.zeros(2, 4), (0, 7), legacy).shape == (2, 0, 7)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("legacy", [False, True])
def test_boxes_that_are_not_finite_are_refused_by_name(value, legacy):
    for corner in range(4):
        boxes = torch.tensor([[1.0, 2, 5, 6]]).repeat(3, 1)
        boxes[1, corner] = value
        with pytest.raises(ValueError, match=r"boxes\[1\] is \[.*(nan|inf)"):
            paste_masks(torch.ones(3, 4, 4), boxes, (9, 9), legacy)


def test_the_largest_numbers_there_are():
    most = torch.finfo(torch.float32).max
    boxes = torch.tensor([[-most, -most, most, most], [0, 0, most, most], [-most, 0, -most / 2, 9]])
    got, wanted = paste_masks(torch.ones(3, 4, 4), boxes, (5, 6)), torch.tensor([1.0, 0.25, 0.0])
    assert torch.equal(got, wanted[:, None, None].expand(3, 5, 6))  # at the edge of a mask a half, on each axis
    with pytest.raises(ValueError, match=r"boxes\[0\].*too large"):
        paste_masks(torch.ones(1, 4, 4), boxes[:1], (5, 6), legacy=True)
    boxes = torch.tensor([[-1e308, -1e308, 1e308, 1e308]], dtype=torch.float64)
    assert paste_masks(torch.ones(1, 4, 4), boxes, (5, 6)).isfinite().all()
    tiny = torch.tensor([[0.5, 0.5, 0.5 + 1e-300, 0.6], [0, 0, 1e-300, 1e-300]], dtype=torch.float64)
    assert paste_masks(torch.ones(2, 4, 4), tiny, (5, 6)).isfinite().all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"masks": torch.ones(2, 1, 4, 4)}, "masks must be floats"),
        ({"masks": torch.ones(2, 0, 4)}, "at least 1"),
        ({"masks": torch.ones(2, 4, 4, dtype=torch.uint8)}, "torch.uint8"),
        ({"boxes": torch.ones(3, 4)}, r"boxes must be .*\(2, 4\).*\(3, 4\)"),
        ({"boxes": torch.ones(2, 5)}, r"\(2, 5\)"),
        ({"size": (5, -1)}, "height and width"),
        ({"size": (5, 6, 7)}, "height and width"),
        ({"threshold": 0}, "threshold must lie in"),
        ({"threshold": 1.5}, "1.5"),
        ({"threshold": math.nan}, "nan"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    arguments = {"masks": torch.ones(2, 4, 4), "boxes": torch.tensor([[1.0, 1, 4, 4]] * 2), "size": (5, 6)}
    paste_masks(**arguments)
    with pytest.raises(ValueError, match=message):
        paste_masks(**(arguments | change))


def test_the_readable_version_takes_what_the_compiled_one_does_not(monkeypatch):
    masks, boxes = random_case(3, (20, 30))
    wanted = paste_masks(masks, boxes, (20, 30))
    monkeypatch.setattr(pasting_cpu, "paste", None)  # calling it would fail
    for dtype in (torch.float16, torch.bfloat16):
        got = paste_masks(masks.to(dtype), boxes, (20, 30))
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), wanted, rtol=0, atol=0.2)
    learnt = masks.clone().requires_grad_()
    pasted = paste_masks(learnt, boxes, (20, 30))
    torch.testing.assert_close(pasted, wanted, rtol=0, atol=1e-5)
    pasted.sum().backward()
    assert learnt.grad.abs().sum() > 0
    monkeypatch.setattr(pasting, "_compiled", lambda: None)  # no Numba
    torch.testing.assert_close(paste_masks(masks, boxes, (20, 30)), wanted, rtol=0, atol=1e-5)


def test_a_mask_that_requires_a_gradient_is_pasted_without_one_under_no_grad():
    masks, boxes = random_case(3, (20, 30))
    with torch.no_grad():
        got = paste_masks(masks.clone().requires_grad_(), boxes, (20, 30))
    assert torch.equal(got, paste_masks(masks, boxes, (20, 30))) and not got.requires_grad
