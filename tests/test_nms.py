"""NMS: hand numbers, the definition, torchvision, ties, groups, and boxes at the edge of what a grid cell can see."""

import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

import mrcnn_scratch
from mrcnn_scratch import nms_cpu
from mrcnn_scratch.nms import batched_nms, nms

module = importlib.import_module("mrcnn_scratch.nms")  # `mrcnn_scratch.nms` is the function
BACKENDS = ("reference", "torch", "numba")  # cuda: test_nms_cuda.py
SCALES = (1e-22, 1e-3, 1.0, 1e3, 1e18, 1e25)  # in float32, areas that lose digits, and areas beyond what it can hold


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


def all_backends(boxes, scores, threshold, idxs=None) -> torch.Tensor:
    """What every backend says, which must be the same."""
    answers = [
        nms(boxes, scores, threshold, name) if idxs is None else batched_nms(boxes, scores, idxs, threshold, name)
        for name in BACKENDS
    ]
    for name, answer in zip(BACKENDS, answers, strict=True):
        assert answer.dtype == torch.int64 and answer.tolist() == answers[0].tolist(), name
    return answers[0]


def peer(boxes, scores, threshold, idxs=None) -> torch.Tensor:
    """torchvision's compiled op, on the CPU for float32 and float64 only, and group by group if there are groups."""
    if boxes.dtype not in (torch.float32, torch.float64):
        boxes, scores = boxes.float(), scores.float()
    groups = torch.zeros(len(boxes)) if idxs is None else idxs
    members = [(groups == name).nonzero()[:, 0] for name in groups.unique()]
    kept = [own[torchvision.ops.nms(boxes[own], scores[own].to(boxes.dtype), threshold)] for own in members]
    kept = torch.cat([torch.zeros(0, dtype=torch.int64), *kept]).sort().values
    return kept[scores[kept].argsort(descending=True, stable=True)]


@st.composite
def some_boxes(draw, most=40):
    """On a coarse grid, so that many coincide, touch, or hold each other; some are degenerate or inverted."""
    corner, size = st.integers(-9, 9), st.integers(-1, 6)
    rows = draw(st.lists(st.tuples(corner, corner, size, size, st.booleans(), st.integers(-3, 3)), max_size=most))
    boxes = torch.tensor([(x, y, x + w, y + h) for x, y, w, h, _, _ in rows], dtype=torch.float64).view(-1, 4)
    moved = torch.rand(boxes.shape, generator=torch.Generator().manual_seed(len(rows)))
    boxes += moved * torch.tensor([m for *_, m, _ in rows]).view(-1, 1)
    return boxes, torch.tensor([s for *_, s in rows], dtype=torch.float64) / 3


def scattered(R: int, kind: str, dtype=torch.float32):
    g = torch.Generator().manual_seed(R)
    if kind == "uniform":
        low = torch.rand(R, 2, generator=g) * 1000
        size = 10 + torch.rand(R, 2, generator=g) * 200
    elif kind == "clustered":  # twenty detections of each object
        low = (torch.rand(R // 20, 2, generator=g) * 1000).repeat_interleave(20, 0)
        low = low + torch.randn(low.shape, generator=g) * 6
        size = (30 + torch.rand(R // 20, 2, generator=g) * 150).repeat_interleave(20, 0)
        size = size * (1 + 0.1 * torch.randn(size.shape, generator=g)).clamp(0.5, 2)
    else:  # of all sizes, thin and flat, and one far away
        low = torch.randn(R, 2, generator=g) * 300
        size = torch.exp(torch.rand(R, 2, generator=g) * 7)
        low[0] = 1e6
    boxes = torch.cat([low, low + size], dim=1).to(dtype)
    return boxes, torch.randint(0, 3 * R, (len(boxes),), generator=g) / (3.0 * R)


def test_by_hand():
    """Shared 1 of 3 pixels: IoU 1/3."""
    boxes = torch.tensor([[0.0, 0, 2, 1], [1, 0, 3, 1], [5, 0, 6, 1]])
    scores = torch.tensor([0.5, 0.9, 0.7])
    assert all_backends(boxes, scores, 0.34).tolist() == [1, 2, 0]
    assert all_backends(boxes, scores, 0.33).tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_iou_equal_to_the_threshold_stays(dtype):
    """[0, 0, 2, 1] and [0, 0, 1, 1]: exactly 0.5."""
    boxes = torch.tensor([[0, 0, 2, 1], [0, 0, 1, 1]], dtype=dtype)
    scores = torch.tensor([0.9, 0.8], dtype=dtype)
    assert all_backends(boxes, scores, 0.5).tolist() == [0, 1]
    assert all_backends(boxes, scores, 0.4999).tolist() == [0]


@pytest.mark.parametrize("width", range(1, 11))
def test_threshold_is_not_rounded_up(width):
    """In float32 7/10 lies above or below 0.7 as a float64; the answer must be the one of the exact comparison."""
    boxes = torch.tensor([[0, 0, 10.0, 1], [0, 0, width, 1]])
    scores = torch.tensor([0.9, 0.8])
    for tenth in range(11):
        threshold = tenth / 10
        assert torch.equal(all_backends(boxes, scores, threshold), peer(boxes, scores, threshold)), (width, threshold)


def test_a_suppressed_box_suppresses_nobody():
    """A chain a-b-c, each overlapping the next: b goes, so c stays. And longer than the torch backend's blocks."""
    x = 4.0 * torch.arange(301)
    boxes = torch.stack([x, 0 * x, x + 10, 0 * x + 1], dim=1)
    scores = 1 - x / 2000
    assert all_backends(boxes[:3], scores[:3], 0.3).tolist() == [0, 2]
    assert all_backends(boxes, scores, 0.3).tolist() == list(range(0, 301, 2))


def test_ties_in_order():
    boxes = torch.tensor([[0.0, 0, 4, 4]]).repeat(5, 1) + 20 * torch.tensor([0, 1, 0, 2, 1]).view(5, 1)
    assert all_backends(boxes, torch.full((5,), 0.5), 0.5).tolist() == [0, 1, 3]


def test_negative_scores_and_both_zeros():
    """-0.0 equals 0.0, so their order decides; logits are scores, too."""
    boxes = torch.tensor([[0.0, 0, 1, 1]]).repeat(6, 1) + 5 * torch.arange(6).view(6, 1)
    scores = torch.tensor([-0.0, 0.0, -1.5, -0.5, 2.0, -0.0])
    for dtype in (torch.float32, torch.float64, torch.float16):
        assert all_backends(boxes, scores.to(dtype), 0.5).tolist() == [4, 0, 1, 5, 3, 2]


def test_boxes_without_area_do_not_suppress():
    boxes = torch.tensor([[3.0, 3, 3, 3], [3, 3, 3, 3], [0, 0, 6, 6]])
    assert all_backends(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.0).tolist() == [0, 1, 2]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    data=some_boxes(),
    threshold=st.sampled_from([0.0, 1e-9, 0.25, 0.3, 0.5, 0.7, 0.99, 1.0]) | st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    scale=st.sampled_from(SCALES),
)
def test_equals_the_definition_and_torchvision(data, threshold, dtype, scale):
    boxes, scores = data
    boxes = boxes * (scale if dtype == torch.float32 else 1)
    mine = all_backends(boxes.to(dtype), scores.to(dtype), threshold)
    assert torch.equal(mine, peer(boxes.to(dtype), scores.to(dtype), threshold))
    if dtype == torch.float64:
        assert mine.tolist() == brute_force(boxes, scores, threshold)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    data=some_boxes(), threshold=st.sampled_from([0.0, 0.3, 0.7]), far=st.sampled_from([1, 10**6, 2**61]), d=st.data()
)
def test_groups_equal_torchvision_of_each(data, threshold, far, d):
    boxes, scores = data
    idxs = far * torch.tensor(d.draw(st.lists(st.integers(-2, 1), min_size=len(boxes), max_size=len(boxes)))).long()
    mine = all_backends(boxes, scores, threshold, idxs)
    assert torch.equal(mine, peer(boxes, scores, threshold, idxs))


@pytest.mark.parametrize("kind", ["uniform", "clustered", "all sizes"])
@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.7, 0.95])
def test_two_thousand_boxes(kind, threshold):
    boxes, scores = scattered(2000, kind)
    expected = peer(boxes, scores, threshold)
    assert torch.equal(nms(boxes, scores, threshold, "numba"), expected)
    assert torch.equal(nms(boxes, scores, threshold, "torch"), expected)
    idxs = torch.randint(0, 7, scores.shape, generator=torch.Generator().manual_seed(1))
    expected = peer(boxes, scores, threshold, idxs)
    assert torch.equal(batched_nms(boxes, scores, idxs, threshold, "numba"), expected)
    assert torch.equal(batched_nms(boxes, scores, idxs, threshold, "torch"), expected)


def test_twelve_thousand_boxes_with_any_number_of_threads():
    boxes, scores = scattered(12_000, "uniform")
    idxs = torch.randint(1, 81, scores.shape, generator=torch.Generator().manual_seed(1))
    before, kept = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            kept.append((nms(boxes, scores, 0.7), batched_nms(boxes, scores, idxs, 0.5)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(kept[0][0], peer(boxes, scores, 0.7))
    assert torch.equal(kept[0][1], peer(boxes, scores, 0.5, idxs))
    assert all(torch.equal(a, b) for other in kept[1:] for a, b in zip(kept[0], other, strict=True))


@pytest.mark.parametrize("threshold", [1e-3, 0.3, 0.7, 0.99, 0.99999])
def test_boxes_that_overlap_more_have_centres_within_reach(threshold):
    """The claim on which the grid rests, where it is tight: the smaller box at an end of the larger one, IoU ~ t.

    In float32, rounding lets an IoU exceed t when the centres are a little farther apart than that allows exactly.
    """
    g, n = np.random.default_rng(0), 100_000
    t = np.float32(threshold)
    large = g.uniform(1, 10, (n, 2)).astype(np.float32)
    small = (large[:, 0] * float(t) * (1 + g.uniform(-3e-7, 3e-7, n))).astype(np.float32)
    shared, size = small * large[:, 1], large[:, 0] * large[:, 1]
    over = shared / (size + shared - shared) > t
    apart = (np.abs(large[:, 0].astype(np.float64) - small) / 2 / small)[over]
    reach = nms_cpu._reach(np.array([[0, 0, 1, 1]], np.float32), t, 1e-30)
    assert over.any() and not over.all()
    assert apart.max() <= reach < apart.max() * (1 + 2e-5 / (1 - threshold))


def test_reach_is_infinite_where_it_cannot_be_proved():
    box = np.array([[0, 0, 1, 1]], np.float32)
    assert nms_cpu._reach(box, np.float32(0), 1e-30) == nms_cpu._reach(box, np.float32(1e-4), 1e-30) == np.inf
    tiny = np.array([[0, 0, 1, 1], [0, 0, 1e-20, 1e-20]], np.float32)
    assert nms_cpu._reach(tiny, np.float32(0.7), 1e-30) == np.inf


# kept box, suppressed box, threshold: intervals on one axis, and the size on the other
REACH = ((2.9999, 10, 10), (0, 10, 10), 0.7)  # IoU 0.70001: could not be farther off its centre
TOUCH = ((0, 3, 10), (2.999, 13, 10), 0.0)  # hardly overlap
TINY = ((0.09, 0.69, 1.4e-45), (0, 0.6, 1.4e-45), 0.9)  # IoU 0.74, but in float32 all three areas round to the same


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("case", [REACH, TOUCH, TINY])
def test_the_grid_misses_nothing(case, axis, mirrored):
    """The farthest box that must go, behind as many boxes without area as it takes to make cells far smaller."""
    (start, end, size), (start2, end2, _), threshold = case
    centre, centre2 = (start + end) / 2, (start2 + end2) / 2
    apart = centre2 - centre
    between = torch.full((40,), centre + 0.9995 * apart, dtype=torch.float64)  # more than are compared at a time
    anywhere = torch.linspace(centre - 1.5 * abs(apart), centre + 1.5 * abs(apart), 20_000, dtype=torch.float64)
    along = torch.cat([torch.tensor([start, start2]).double(), between, anywhere])
    along_end = torch.cat([torch.tensor([end, end2]).double(), between, anywhere])
    boxes = torch.full((len(along), 4), size / 2, dtype=torch.float64)
    boxes[:2, 1 - axis], boxes[:2, 3 - axis] = 0, size
    boxes[:, axis], boxes[:, axis + 2] = (-along_end, -along) if mirrored else (along, along_end)
    boxes = boxes.float()
    scores = torch.linspace(1, 0, len(boxes))
    assert nms(boxes[:2], scores[:2], threshold, "reference").tolist() == [0]
    assert nms(boxes, scores, threshold, "numba").tolist() == [0, *range(2, len(boxes))]


def test_cells_are_never_outside_the_grid():
    for centre, cell in ((-5.0, 0), (np.nan, 0), (0.0, 0), (3.2, 3), (1e300, 7), (np.inf, 7), (-np.inf, 0)):
        assert nms_cpu._cell(centre, 0.0, 1.0, 8) == cell


def test_names_of_groups_far_apart_make_no_more_grids():
    codes, count = nms_cpu._codes(np.array([5, 10**6, -(10**15), 5]))
    assert codes.tolist() == [1, 2, 0, 1] and count == 3
    codes, count = nms_cpu._codes(np.array([7, 5, 5]))
    assert codes.tolist() == [2, 0, 0] and count == 3


def test_no_index_is_out_of_bounds():
    """Compiled code would not notice; so here it runs uncompiled, in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", UNCOMPILED],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and run.stdout.split() == ["done"], run.stderr[-2000:]


UNCOMPILED = """
import test_nms, torch
from mrcnn_scratch import nms_cpu
assert not hasattr(nms_cpu._sweep, "py_func")
for R in (0, 1, 15, 16, 17, 64):
    boxes, scores = test_nms.scattered(R, "all sizes") if R else (torch.zeros(0, 4), torch.zeros(0))
    for idxs in (torch.zeros(R).long(), torch.arange(R) // 20, torch.arange(R)):
        for threshold in (0.0, 0.5, 1.0):
            test_nms.all_backends(boxes / 10, scores, threshold, idxs)
print("done")
"""


def test_batched_does_not_move_boxes():
    """Far out, an offset per class would round these float32 corners together: 0.5 pixel beside 1e7 is lost."""
    boxes = torch.tensor([[0.0, 0, 1, 1], [0.5, 0, 1.5, 1], [1e7, 0, 1e7 + 4, 1]])
    scores, idxs = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([3, 3, 0])
    assert all_backends(boxes, scores, 0.4, idxs).tolist() == [0, 1, 2]
    assert all_backends(boxes, scores, 0.3, torch.tensor([3, 3, 3])).tolist() == [0, 2]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.bool])
def test_groups_of_any_whole_dtype(dtype):
    boxes, scores = torch.tensor([[0.0, 0, 1, 1]]).repeat(3, 1), torch.tensor([0.1, 0.9, 0.5])
    assert all_backends(boxes, scores, 0.5, torch.tensor([0, 1, 1]).to(dtype)).tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_boxes(dtype):
    """Areas beyond 65,504 overflow float16: they are computed in float32. So does the sum of many corners."""
    boxes = torch.tensor([[0, 0, 1024, 1024], [0, 0, 1024, 512], [0, 0, 1000, 1024]], dtype=dtype)
    assert all_backends(boxes, torch.tensor([0.5, 0.75, 0.25], dtype=dtype), 0.6).tolist() == [1, 0]
    many = boxes.repeat(40, 1)
    assert len(all_backends(many, torch.ones(120, dtype=dtype), 0.6)) == 2


def test_coordinates_whose_centres_overflow():
    """1e308 + 1e308 is infinite in float64; the areas are as well, so that nothing has an IoU."""
    far = 1.5e308
    rows = [[0, 0, far, far], [0, 0, far, far], [-far, 0, far, 1], [far, 5, far, 6], [5, 5, 6, 6], [5, 5, 6, 6]]
    boxes, scores = torch.tensor(rows, dtype=torch.float64), torch.linspace(1, 0, 6)
    assert all_backends(boxes, scores, 0.5).tolist() == peer(boxes, scores, 0.5).tolist() == [0, 1, 2, 3, 4]


def test_strided_arguments():
    boxes, scores = scattered(100, "uniform")
    wide = torch.stack([boxes, boxes + 1], dim=2).transpose(0, 1).contiguous().transpose(0, 1)[:, :, 0]
    assert not wide.is_contiguous()
    assert torch.equal(all_backends(wide, scores.repeat_interleave(2)[::2], 0.3), peer(boxes, scores, 0.3))


def test_empty():
    boxes, scores = torch.zeros(0, 4), torch.zeros(0)
    for idxs in (None, torch.zeros(0, dtype=torch.int64)):
        assert all_backends(boxes, scores, 0.5, idxs).shape == (0,)


def test_gradients_are_left_out():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2]], requires_grad=True)
    scores = torch.tensor([0.1, 0.2], requires_grad=True)
    assert all_backends(boxes, scores, 0.5).tolist() == [1]
    assert all_backends(boxes, scores, 0.5, torch.tensor([0, 1])).tolist() == [1, 0]


class Suppressed(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, i):
        return nms(*scattered(6000, "uniform"), 0.7)


def test_forked_workers_may_call_it():
    """After it has run in the parent with several threads, too."""
    expected = Suppressed()[0]
    loader = torch.utils.data.DataLoader(Suppressed(), batch_size=None, num_workers=1, multiprocessing_context="fork")
    assert all(torch.equal(kept, expected) for kept in loader)


GOOD = {"boxes": torch.zeros(2, 4), "scores": torch.zeros(2), "iou_threshold": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.zeros(2, 5)}, r"boxes must have shape \(R, 4\).*\(2, 5\)"),
        ({"boxes": torch.zeros(4)}, r"\(R, 4\)"),
        ({"boxes": torch.zeros(2, 4, dtype=torch.int64)}, "boxes must be a floating point tensor, got torch.int64"),
        ({"boxes": [[0, 0, 1, 1]]}, "boxes must be a floating point tensor, got list"),
        ({"scores": torch.ones(2, dtype=torch.int32)}, "scores must be a floating point tensor, got torch.int32"),
        ({"scores": torch.zeros(3)}, "one value per box"),
        ({"scores": torch.zeros(2, device="meta")}, "scores lie on meta but the boxes on cpu"),
        ({"iou_threshold": 1.5}, "between 0 and 1, got 1.5"),
        ({"iou_threshold": -0.1}, "between 0 and 1"),
        ({"iou_threshold": float("nan")}, "between 0 and 1, got nan"),
        ({"boxes": torch.tensor([[0.0, 0, 1, 1], [0, 0, float("nan"), 1]])}, "box 1 = .*not finite"),
        ({"boxes": torch.tensor([[0.0, 0, 1, 1], [0, -float("inf"), float("inf"), 1]])}, "box 1 = .*not finite"),
        ({"scores": torch.tensor([float("inf"), 0.0])}, "box 0 = .*score inf"),
        ({"backend": "fast"}, "backend must be one of 'auto'.*got 'fast'"),
        ({"backend": "cuda"}, 'backend "cuda" needs boxes on the device "cuda", they lie on "cpu"'),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        nms(**(GOOD | change))
    with pytest.raises(ValueError, match=message):
        batched_nms(**(GOOD | change), idxs=torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named(value, dtype, backend):
    for place in range(5):
        boxes, scores = torch.tensor([[0.0, 0, 1, 1]]).repeat(3, 1), torch.tensor([-0.5, 0.5, 0.0])
        (boxes[1] if place < 4 else scores[1:])[place % 4] = value
        with pytest.raises(ValueError, match="box 1 = .* is not finite; drop it before NMS"):
            nms(boxes.to(dtype), scores.to(dtype), 0.5, backend)


@pytest.mark.parametrize(
    ("idxs", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), r"one group per box: shape \(3,\) for 2 scores"),
        (torch.zeros(2), "idxs must be a tensor of whole numbers, got torch.float32"),
        ([0, 1], "idxs must be a tensor of whole numbers, got list"),
        (torch.zeros(2, dtype=torch.int64, device="meta"), "idxs lie on meta but the boxes on cpu"),
    ],
)
def test_errors_in_groups(idxs, message):
    with pytest.raises(ValueError, match=message):
        batched_nms(**GOOD, idxs=idxs)


def test_a_device_of_another_kind_runs_torch():
    assert module._choose("mps", "auto") == "torch"
    with pytest.raises(ValueError, match='backend "numba" needs boxes on the device "cpu", they lie on "mps"'):
        module._choose("mps", "numba")


def test_without_numba_torch_takes_over_and_says_so_once(monkeypatch):
    boxes, scores = scattered(100, "uniform")
    monkeypatch.delattr(mrcnn_scratch, "nms_cpu", raising=False)
    monkeypatch.setitem(sys.modules, "mrcnn_scratch.nms_cpu", None)
    module._runs_or_says_why_not.cache_clear()
    try:
        with pytest.warns(
            UserWarning, match='backend "numba" cannot run: numba cannot be imported.*falls back to torch'
        ):
            kept = nms(boxes, scores, 0.3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(nms(boxes, scores, 0.3), kept)
        with pytest.raises(RuntimeError, match='backend "numba" cannot run: numba cannot be imported'):
            nms(boxes, scores, 0.3, "numba")
    finally:
        module._runs_or_says_why_not.cache_clear()
    assert torch.equal(kept, peer(boxes, scores, 0.3))
