"""The gradient that a box receives from RoIAlign and RoIWarp: by hand, by finite differences, at kinks and clamps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from mrcnn_scratch.roi_ops import roi_align, roi_pool, roi_warp
from tests.roi_cases import (
    BACKENDS,
    SAMPLERS,
    boxes_of,
    by_grid_sample,
    cases,
    gradients,
    near_border_edge,
    ramp,
    random_case,
    sample_places,
)

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS)


def box_gradient(op, features, boxes, *args, **options) -> torch.Tensor:
    """(R, 5): the gradient of the sum of the results."""
    boxes = boxes.clone().requires_grad_()
    return torch.autograd.grad(op(features, boxes, *args, box_gradients=True, **options).sum(), boxes)[0]


# ---- numbers to check by hand


@each_backend
@pytest.mark.parametrize("reduce", ["mean", "max"])
@each_sampler
def test_on_the_ramp(sampler, reduce, backend):
    """The ramp rises by 1 a column and by 5 a row; one bin of 2 x 2 samples.

    Their places along the RoI are t = 1/4 and 3/4; in MNC's sampler 0 and 1/2. The low corner moves a sample by 1 - t
    and the high corner by t: on average, 1/2 and 1/2; in MNC's sampler 3/4 and 1/4. The largest sample is the last.
    """
    t = {"mean": 0.25, "max": 0.5}[reduce] if sampler == "mnc" else {"mean": 0.5, "max": 0.75}[reduce]
    grad = box_gradient(SAMPLERS[sampler], ramp(), boxes_of([1, 1, 3, 3]), 1, reduce=reduce, backend=backend)
    torch.testing.assert_close(grad, boxes_of([1 - t, 5 * (1 - t), t, 5 * t]))
    half = box_gradient(SAMPLERS[sampler], ramp(), boxes_of([2, 2, 6, 6]), 1, 0.5, reduce=reduce, backend=backend)
    torch.testing.assert_close(half, grad / 2)  # a pixel is half a cell


@each_backend
def test_each_bin_has_its_share_of_the_corners(backend):
    """Two bins side by side: the left one's samples lie at t = 1/8 and 3/8, so x1 moves them by 3/4 and x2 by 1/4."""
    boxes = boxes_of([1, 1, 3, 3]).requires_grad_()
    out = roi_align(ramp(), boxes, (1, 2), backend=backend, box_gradients=True)
    for q, t in enumerate((0.25, 0.75)):
        (grad,) = torch.autograd.grad(out[0, 0, 0, q], boxes, retain_graph=True)
        torch.testing.assert_close(grad, boxes_of([1 - t, 2.5, t, 2.5]))


@each_backend
@pytest.mark.parametrize("axis", ["x", "y"])
def test_at_clamps_and_kinks(backend, axis):
    """A row of squares 0 1 4 9 16 25 rises by 1 3 5 7 9 between cells. One sample, moved by half of either corner.

    Clamped to an outermost cell, from index 0 down and from 5 up, it does not feel where it is, as little as off the
    map; at the centre of a cell it feels the rise to the right.
    """
    row = torch.arange(6.0, dtype=torch.float64).square()
    features = row.repeat(4, 1) if axis == "x" else row.repeat(4, 1).T
    rises = {
        -1.25: 0,
        -1: 0,
        -0.5: 0,
        0: 0,
        0.25: 1,
        1: 3,
        2: 5,
        2.5: 5,
        3.75: 7,
        4: 9,
        4.75: 9,
        5: 0,
        5.5: 0,
        6: 0,
        6.25: 0,
    }
    for place, rise in rises.items():
        low, high = place + 0.25, place + 0.75  # aligned: index + 0.5 is the middle
        box = boxes_of([low, 2, high, 2.5] if axis == "x" else [2, low, 2.5, high])
        for reduce in ("mean", "max"):
            options = dict(sampling_ratio=1, reduce=reduce, backend=backend)
            grad = box_gradient(roi_align, features[None, None], box, 1, **options)
            along, across = (grad[0, 1::2], grad[0, 2::2]) if axis == "x" else (grad[0, 2::2], grad[0, 1::2])
            assert along.tolist() == [rise / 2, rise / 2], place
            assert across.tolist() == [0, 0]


@each_backend
def test_mnc_at_its_border(backend):
    """Cell -1 to 2 in 8 bins of half a cell: -1 and -0.5 are off the map, 0 is clamped, 0.5 and 1 feel their rise."""
    features = torch.arange(6.0, dtype=torch.float64).square().repeat(1, 1, 4, 1)
    boxes = boxes_of([-1, 1, 2, 1]).requires_grad_()
    out = roi_warp(features, boxes, (1, 8), sampling_ratio=1, sampler="mnc", backend=backend, box_gradients=True)
    assert out.flatten().tolist() == [0, 0, 0, 0.5, 1, 2.5, 4, 6.5]
    for q, rise in enumerate([0, 0, 0, 1, 3, 3, 5, 5]):
        (grad,) = torch.autograd.grad(out[0, 0, 0, q], boxes, retain_graph=True)
        assert grad.tolist() == [[0, rise * (1 - q / 8), 0, rise * q / 8, 0]]


@each_backend
def test_a_size_held_at_one_cell_follows_the_low_corner(backend):
    """legacy: narrower than a cell; warp and mnc: inverted. The RoI moves as one. At one cell itself it is free."""
    x = ramp()
    for sampler, box in (("legacy", [1.2, 1, 1.9, 3]), ("warp", [3, 1, 1, 3]), ("mnc", [3, 1, 1, 3])):
        grad = box_gradient(SAMPLERS[sampler], x, boxes_of(box), 1, backend=backend)
        assert grad[0, 1].item() == pytest.approx(1) and grad[0, 3].item() == 0
    for sampler, box in (("legacy", [1.25, 1, 2.25, 3]), ("warp", [2, 1, 2, 3]), ("mnc", [2, 1, 2, 3])):
        grad = box_gradient(SAMPLERS[sampler], x, boxes_of(box), 1, backend=backend)
        assert grad[0, 1].item() > 0 and grad[0, 3].item() > 0 and grad[0, 1::2].sum().item() == pytest.approx(1)


# ---- finite differences


@each_backend
@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("sampler", ["aligned", "legacy"])
def test_gradcheck(sampler, ratio, reduce, backend):
    """By boxes and features together, away from kinks: two images, over the border, inverted, thinner than a cell."""
    corners = [[1.3, 0.7, 4.92, 3.1], [-0.8, 1.13, 2.2, 4.3], [3.37, 3.61, 1.12, 2.4], [2.17, 1.23, 2.61, 1.93]]
    corners = torch.tensor(corners, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[0.0], [1], [1], [0]], dtype=torch.float64)
    x = torch.randn(2, 1, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    options = dict(reduce=reduce, backend=backend, box_gradients=True)

    def pooled(x, corners):
        return SAMPLERS[sampler](x, torch.cat([index, corners], dim=1), (2, 3), 0.9, ratio, **options)

    assert gradcheck(pooled, (x, corners), fast_mode=True)


def far_from_trouble(case, ratio: int, convention: str, reduce: str) -> torch.Tensor:
    """(R,) bool: the RoIs whose gradient is their derivative from the right.

    No sample near the border rule's edges or index 0, nor just left of a kink; and no samples at one place, of which a
    corner that moves may make one the largest.
    """
    sizes = (case.boxes[:, 3:] - case.boxes[:, 1:3]).abs().amin(dim=1)
    good = (sizes > 1e-3) | (convention != "aligned") | (reduce == "mean")
    for r, places in enumerate(sample_places(case, ratio, convention)):
        for v, length in places:
            good[r] &= not (near_border_edge(v, length, convention) or abs(v) < 1e-4 or 0 < abs(v - round(v)) < 1e-4)
    return good


@pytest.mark.parametrize("reduce", ["mean", "max"])
@each_sampler
@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=cases(most=10, first=1, least=4), ratio=st.sampled_from([0, 1, 2, 3]))
def test_finite_differences(sampler, reduce, case, ratio):
    """Against differences of another implementation, in which the corners move *after* they were rounded.

    For RoIWarp that is the gradient passed straight through the rounding. From the right: MNC's samples lie on kinks.
    """
    case = case._replace(boxes=case.boxes[far_from_trouble(case, ratio, sampler, reduce)])
    here, step, changes = by_grid_sample(*case, ratio, sampler, reduce), 1e-6, []
    weights = torch.randn(here.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for k in range(4):
        nudge = [step * (i == k) for i in range(4)]
        change = (by_grid_sample(*case, ratio, sampler, reduce, nudge) - here) / step * case.scale  # a pixel
        changes.append((change * weights).sum(dim=(1, 2, 3)))
    for backend in BACKENDS:
        out, _, grad = gradients(SAMPLERS[sampler], *case, ratio, reduce=reduce, backend=backend, box_gradients=True)
        torch.testing.assert_close(out, here, rtol=0, atol=1e-10)
        torch.testing.assert_close(grad[:, 1:], torch.stack(changes, dim=1), rtol=0, atol=1e-6)
        assert (grad[:, 0] == 0).all()


@each_backend
@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_roi_warp_passes_what_roi_align_receives_on_the_rounded_cells(reduce, backend):
    """Corners 2.4 and 4.6 are the cells 2 to 5, RoIAlign's [2, 6): both boxes have one gradient."""
    features, _ = random_case(0)
    boxes = torch.tensor([[0, 9.6, 5.9, 18.4, 9.9], [1, 2.0, -6.0, 6.0, 6.1]], dtype=torch.float64)
    cells = torch.tensor([[0, 8, 4, 24, 12], [1, 4, -8, 12, 12]], dtype=torch.float64)
    mine, theirs = (
        box_gradient(op, features, b, (2, 3), 0.25, reduce=reduce, backend=backend)
        for op, b in ((roi_warp, boxes), (roi_align, cells))
    )
    torch.testing.assert_close(mine, theirs)
    assert mine[:, 1:].abs().min() > 0


# ---- who receives one, and who does not


@each_backend
@pytest.mark.parametrize("form", ["rows", "list"])
@pytest.mark.parametrize("op", [*SAMPLERS, "pool"])
def test_trap_11_boxes_receive_a_gradient_only_when_asked(op, form, backend):
    """By default the boxes are where we look, not what we see: no end-to-end training by accident."""
    op = roi_pool if op == "pool" else SAMPLERS[op]
    features, boxes = random_case(2)
    boxes.requires_grad_()
    argument = boxes if form == "rows" else [boxes[boxes[:, 0] == n][:, 1:] for n in (0, 1)]
    op(features.requires_grad_(), argument, 2, 0.25, backend=backend).sum().backward()
    assert boxes.grad is None and features.grad.abs().sum() > 0
    assert not op(features.detach(), argument, 2, backend=backend).requires_grad


@each_backend
@each_sampler
def test_a_list_of_boxes(sampler, backend):
    features, boxes = random_case(3)
    boxes = torch.cat([boxes[boxes[:, 0] == n] for n in (0, 1)])
    expected = box_gradient(SAMPLERS[sampler], features, boxes, (2, 3), 0.25, backend=backend)
    per_image = [boxes[boxes[:, 0] == n, 1:].requires_grad_() for n in (0, 1)]
    out = SAMPLERS[sampler](features, per_image, (2, 3), 0.25, backend=backend, box_gradients=True)
    grads = torch.autograd.grad(out.sum(), per_image)
    assert torch.equal(torch.cat(grads), expected[:, 1:]) and expected[:, 1:].abs().sum() > 0


@each_backend
@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_no_samples_and_samples_off_the_map_give_zero(reduce, backend):
    """A gradient of 0, not a missing one. With sampling ratio 0 a RoI without size has no samples."""
    features, _ = random_case(6)
    far = boxes_of([90, 80, 110, 95], [-60, 3, -45, 9])
    assert (box_gradient(roi_align, features, far, 2, 0.25, reduce=reduce, backend=backend) == 0).all()
    empty = boxes_of([5, 5, 5, 5], [5, 5, 5, 9], [9, 5, 5, 9])
    grad = box_gradient(roi_align, features, empty, 2, 0.25, 0, reduce=reduce, backend=backend)
    assert grad.shape == (3, 5) and (grad == 0).all()


@each_backend
def test_precision_and_what_needs_a_gradient(backend):
    """Boxes keep their own dtype; boxes alone, or features alone, may require a gradient."""
    features, boxes = random_case(7)
    exact = box_gradient(roi_align, features, boxes, 2, 0.25, backend=backend)
    for x, b in ((features.float(), boxes.float()), (features.float(), boxes), (features.half(), boxes.float())):
        grad = box_gradient(roi_align, x, b, 2, 0.25, backend=backend)
        assert grad.dtype == b.dtype
        torch.testing.assert_close(grad.double(), exact, rtol=0, atol=1e-2 if x.dtype == torch.float16 else 1e-4)
    x = features.requires_grad_()
    out = roi_align(x, boxes, 2, 0.25, backend=backend, box_gradients=True)
    assert torch.autograd.grad(out.sum(), x)[0].abs().sum() > 0
