"""The CUDA kernels of NMS in Numba's simulator, against the reference loop.

Run by test_nms_cuda.py in a process of its own, since the simulator holds for a whole process:
NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/cudasim_nms/simulated_nms.py
"""

import numpy as np
import pytest
import torch

from mrcnn_scratch import nms_cuda
from mrcnn_scratch.nms import _at_most, batched_nms, nms

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's numbers complain of 0 / 0, a GPU does not


def crowd(R: int, dtype=torch.float32):
    """R boxes among which many coincide, touch or hold each other, and some are degenerate or inverted; tied scores."""
    g = torch.Generator().manual_seed(R)
    low = torch.randint(-9, 9, (R, 2), generator=g)
    boxes = torch.cat([low, low + torch.randint(-1, 7, (R, 2), generator=g)], dim=1).to(dtype)
    boxes[::3] += torch.rand(boxes[::3].shape, generator=g)
    return boxes, torch.randint(-R, R, (R,), generator=g) / R


def on_device(boxes, scores, idxs, threshold):
    number = np.float64 if boxes.dtype == torch.float64 else np.float32
    return nms_cuda.keep(boxes, scores, idxs, _at_most(threshold, number))


def reference(boxes, scores, idxs, threshold):
    if idxs is None:
        return nms(boxes, scores, threshold, "reference")
    return batched_nms(boxes, scores, idxs, threshold, "reference")


@pytest.mark.parametrize(
    ("R", "dtype", "threshold"),
    [
        (1, torch.float32, 0.5),
        (63, torch.float32, 0.3),
        (64, torch.float64, 0.0),
        (65, torch.float32, 0.0),
        (199, torch.float32, 0.3),  # four tiles, the last one ragged
        (193, torch.float64, 0.7),  # one box in the last tile
    ],
)
def test_equals_the_reference(R, dtype, threshold):
    boxes, scores = crowd(R, dtype)
    kept = on_device(boxes, scores, None, threshold)
    assert kept.dtype == torch.int64
    assert kept.tolist() == reference(boxes, scores, None, threshold).tolist()
    assert R < 64 or len(kept) < R


@pytest.mark.parametrize("sizes", [(130, 1, 61, 7), (64, 64, 20), (1,) * 70])
def test_groups(sizes):
    """Groups that end inside a tile, with a tile, and one for each box; shuffled, with names far apart."""
    idxs = torch.cat([torch.full((n,), (-7) ** (k % 20)) for k, n in enumerate(sizes)])
    idxs = idxs[torch.randperm(len(idxs), generator=torch.Generator().manual_seed(0))]
    boxes, scores = crowd(len(idxs))
    assert on_device(boxes, scores, idxs, 0.2).tolist() == reference(boxes, scores, idxs, 0.2).tolist()


def test_more_bits_than_are_held_at_a_time(monkeypatch):
    """Two tiles of boxes at a time: what the first two removed must be known in the next round."""
    boxes, scores = crowd(200)
    idxs = torch.arange(200) // 150
    monkeypatch.setattr(nms_cuda, "WORDS", 2 * 64 * 4)
    assert on_device(boxes, scores, idxs, 0.3).tolist() == reference(boxes, scores, idxs, 0.3).tolist()


def test_a_chain_through_all_tiles():
    """Each box overlaps the next: every second one stays, which is known only once its neighbour's fate is."""
    x = 4.0 * torch.arange(150)
    boxes = torch.stack([x, 0 * x, x + 10, 0 * x + 1], dim=1)
    assert on_device(boxes, -x, None, 0.3).tolist() == list(range(0, 150, 2))


def test_identical_boxes_and_scores():
    boxes = torch.tensor([[0.0, 0, 4, 4]]).repeat(70, 1)
    assert on_device(boxes, torch.zeros(70), None, 0.99).tolist() == [0]
    assert on_device(boxes, torch.zeros(70), None, 1.0).tolist() == list(range(70))  # an IoU of 1 is not above 1


@pytest.mark.parametrize("scale", [1e-22, 1e18, 1e25])
def test_areas_that_lose_digits_or_overflow(scale):
    boxes, scores = crowd(70)
    boxes = boxes * scale
    assert on_device(boxes, scores, None, 0.3).tolist() == reference(boxes, scores, None, 0.3).tolist()


def test_threshold_is_not_rounded_up():
    """In float32 7/10 lies above or below 0.7 as a float64."""
    widths = torch.arange(1.0, 11)
    for threshold in (0.3, 0.6, 0.7, 0.9):
        boxes = torch.stack([0 * widths, 0 * widths, widths, 1 + 0 * widths], dim=1)
        expected = reference(boxes, widths, None, threshold)
        assert on_device(boxes, widths, None, threshold).tolist() == expected.tolist()


def test_empty():
    kept = on_device(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5)
    assert kept.shape == (0,) and kept.dtype == torch.int64


def test_what_is_not_finite_is_reported():
    boxes, scores = crowd(70)
    boxes[66, 2] = float("nan")
    assert on_device(boxes, scores, None, 0.5) is None
    boxes, scores = crowd(70)
    scores[3] = -float("inf")
    assert on_device(boxes, scores, None, 0.5) is None
