"""NMS: hand numbers, a brute-force loop, torchvision, ties, classes."""

import importlib

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_scratch.nms import batched_nms, nms

module = importlib.import_module("mrcnn_scratch.nms")  # `mrcnn_scratch.nms` is the function


def iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0


def brute_force(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[int]:
    """The definition: take the best that is left, throw out what overlaps it, repeat."""
    left = sorted(range(len(scores)), key=lambda i: (-scores[i].item(), i))
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if not iou(boxes[best].tolist(), boxes[i].tolist()) > threshold]
    return kept


def both_paths(boxes, scores, threshold) -> torch.Tensor:
    """The compiled and the torch sweep must agree; returns what they say."""
    order = scores.argsort(descending=True, stable=True)
    slow = order[module._sweep_torch(boxes[order], threshold)]
    fast = nms(boxes, scores, threshold)
    assert torch.equal(fast, slow)
    return fast


def random_boxes(seed: int, R: int, dtype=torch.float32):
    """Boxes on a coarse grid, so that many coincide and touch; scores with ties."""
    g = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 12, (R, 2), generator=g)
    boxes = torch.cat([low, low + torch.randint(0, 8, (R, 2), generator=g)], dim=1).to(dtype)
    boxes[::3] += torch.rand(boxes[::3].shape, generator=g)
    return boxes, torch.randint(0, 10, (R,), generator=g).to(dtype) / 10


def test_by_hand():
    """Shared 1 of 3 pixels: IoU 1/3."""
    boxes = torch.tensor([[0.0, 0, 2, 1], [1, 0, 3, 1], [5, 0, 6, 1]])
    scores = torch.tensor([0.5, 0.9, 0.7])
    assert both_paths(boxes, scores, 0.34).tolist() == [1, 2, 0]
    assert both_paths(boxes, scores, 0.33).tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_iou_equal_to_the_threshold_stays(dtype):
    """[0, 0, 2, 1] and [0, 0, 1, 1]: exactly 0.5."""
    boxes = torch.tensor([[0, 0, 2, 1], [0, 0, 1, 1]], dtype=dtype)
    scores = torch.tensor([0.9, 0.8], dtype=dtype)
    assert both_paths(boxes, scores, 0.5).tolist() == [0, 1]
    assert both_paths(boxes, scores, 0.4999).tolist() == [0]


@pytest.mark.parametrize("width", range(1, 11))
def test_threshold_is_not_rounded_up(width):
    """In float32 7/10 lies above or below 0.7 as a float64; the answer must be the one of the exact comparison."""
    boxes = torch.tensor([[0, 0, 10.0, 1], [0, 0, width, 1]])
    scores = torch.tensor([0.9, 0.8])
    for tenth in range(11):
        threshold = tenth / 10
        expected = torchvision.ops.nms(boxes, scores, threshold)
        assert torch.equal(both_paths(boxes, scores, threshold), expected), (width, threshold)


def test_a_suppressed_box_suppresses_nobody():
    """A chain a-b-c, each overlapping the next: b goes, so c stays."""
    boxes = torch.tensor([[0.0, 0, 10, 1], [4, 0, 14, 1], [8, 0, 18, 1]])
    assert both_paths(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.3).tolist() == [0, 2]


def test_ties_in_order():
    boxes = torch.tensor([[0.0, 0, 4, 4]]).repeat(5, 1) + 20 * torch.tensor([0, 1, 0, 2, 1]).view(5, 1)
    assert both_paths(boxes, torch.full((5,), 0.5), 0.5).tolist() == [0, 1, 3]


def test_boxes_without_area_do_not_suppress():
    boxes = torch.tensor([[3.0, 3, 3, 3], [3, 3, 3, 3], [0, 0, 6, 6]])
    assert both_paths(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.0).tolist() == [0, 1, 2]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    R=st.integers(0, 40),
    threshold=st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.7, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_brute_force_and_torchvision(seed, R, threshold, dtype):
    boxes, scores = random_boxes(seed, R, dtype)
    mine = both_paths(boxes, scores, threshold)
    assert torch.equal(mine, torchvision.ops.nms(boxes, scores, threshold))
    if dtype == torch.float64:
        assert mine.tolist() == brute_force(boxes, scores, threshold)


def test_many_boxes():
    g = torch.Generator().manual_seed(0)
    low = torch.rand(3000, 2, generator=g) * 200
    boxes, scores = (
        torch.cat([low, low + 40 * torch.rand(3000, 2, generator=g)], dim=1),
        torch.rand(3000, generator=g),
    )
    assert torch.equal(nms(boxes, scores, 0.5), torchvision.ops.nms(boxes, scores, 0.5))


def test_batched_is_nms_of_each_class_best_first():
    boxes, scores = random_boxes(5, 60, torch.float64)
    idxs = torch.randint(0, 4, (60,), generator=torch.Generator().manual_seed(1))
    kept = batched_nms(boxes, scores, idxs, 0.4)
    for k in range(4):
        own = (idxs == k).nonzero()[:, 0]
        alone = [own[i].item() for i in brute_force(boxes[own], scores[own], 0.4)]
        assert [i for i in kept.tolist() if idxs[i] == k] == alone
    ranked = sorted(kept.tolist(), key=lambda i: (-scores[i].item(), i))
    assert kept.tolist() == ranked


def test_batched_does_not_move_boxes():
    """Far out, an offset per class would round these float32 corners together: 0.5 pixel beside 1e7 is lost."""
    boxes = torch.tensor([[0.0, 0, 1, 1], [0.5, 0, 1.5, 1], [1e7, 0, 1e7 + 4, 1]])
    scores, idxs = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([3, 3, 0])
    assert batched_nms(boxes, scores, idxs, 0.4).tolist() == [0, 1, 2]
    assert batched_nms(boxes, scores, torch.tensor([3, 3, 3]), 0.3).tolist() == [0, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_boxes(dtype):
    """Areas beyond 65,504 overflow float16: they are computed in float32."""
    boxes = torch.tensor([[0, 0, 1024, 1024], [0, 0, 1024, 512], [0, 0, 1000, 1024]], dtype=dtype)
    assert nms(boxes, torch.tensor([0.5, 0.75, 0.25], dtype=dtype), 0.6).tolist() == [1, 0]


def test_empty():
    for call in (
        lambda b, s: nms(b, s, 0.5),
        lambda b, s: batched_nms(b, s, torch.zeros(0, dtype=torch.int64), 0.5),
    ):
        out = call(torch.zeros(0, 4), torch.zeros(0))
        assert out.shape == (0,) and out.dtype == torch.int64
    assert both_paths(torch.zeros(0, 4), torch.zeros(0), 0.5).shape == (0,)


def test_gradients_are_left_out():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2]], requires_grad=True)
    assert nms(boxes, torch.tensor([0.1, 0.2], requires_grad=True), 0.5).tolist() == [1]
    scores = torch.tensor([0.1, 0.2], requires_grad=True)
    assert batched_nms(boxes, scores, torch.tensor([0, 1]), 0.5).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.zeros(2, 5)}, r"\(R, 4\).*\(2, 5\)"),
        ({"boxes": torch.zeros(4)}, r"\(R, 4\)"),
        ({"scores": torch.zeros(3)}, "one value per box"),
        ({"iou_threshold": 1.5}, "between 0 and 1, got 1.5"),
        ({"iou_threshold": -0.1}, "between 0 and 1"),
        ({"boxes": torch.tensor([[0.0, 0, 1, 1], [0, 0, float("nan"), 1]])}, "box 1 = .*not finite"),
        ({"scores": torch.tensor([float("inf"), 0.0])}, "box 0 = .*score inf"),
    ],
)
def test_errors(change, message):
    good = {"boxes": torch.zeros(2, 4), "scores": torch.zeros(2), "iou_threshold": 0.5}
    with pytest.raises(ValueError, match=message):
        nms(**(good | change))
    with pytest.raises(ValueError, match="one group per box"):
        batched_nms(**good, idxs=torch.zeros(3))
