"""Check of notebook 08: `my_roi_align_backward`."""

from functools import partial

import torch
from torch import Tensor

from .kit import check, expect_close, teacher
from .roi_align import ALIGN_PROBES
from .roi_cases import expect_case, expect_same_precision, some_rois
from .roi_reads import COUNT, WAYS_TO_ERR, packages, reads


def _backward(grad: Tensor, table: Tensor) -> Tensor:
    return torch.einsum("rcpq,rpqyx->cyx", grad.double(), table)


def _back_like(grad, boxes, map_size, scale, n, only=None, **way) -> Tensor:
    return _backward(grad, reads(boxes, tuple(grad.shape[2:]), map_size, scale, only or n, **way))


def _overwritten(grad, boxes, map_size, scale, n) -> Tensor:
    """A cell keeps what the last output that read it has sent, the shares of its samples added or not."""
    out = grad.new_zeros(grad.shape[1], *map_size, dtype=torch.float64)
    table = reads(boxes, tuple(grad.shape[2:]), map_size, scale, n)
    for r, p, q, y, x in table.nonzero().tolist():
        out[:, y, x] = grad[r, :, p, q].double() * table[r, p, q, y, x]
    return out


BACK_WAYS = {
    **{hint: partial(_back_like, **way) for hint, way in WAYS_TO_ERR.items()},
    **{COUNT.format(m): partial(_back_like, only=m) for m in (1, 2, 4)},
    "A cell that several outputs have read receives the gradients of all of them, added: yours keeps the last": (
        _overwritten
    ),
    "Every RoI sends its gradients to the same map: the first RoI alone is not enough": lambda grad, boxes, *rest: (
        _back_like(grad[:1], boxes[:1], *rest)
    ),
    "Each channel receives its own gradients": lambda grad, *rest: _back_like(
        grad.sum(dim=1, keepdim=True).expand_as(grad), *rest
    ),
}


def _back_probe(seed: int) -> tuple:
    grad = torch.randn(4, 3, 2, 3, generator=torch.Generator().manual_seed(seed))
    return grad, some_rois(4, seed), (7, 11), 1 / 16, 2


BACK_PROBES = [_back_probe(95), (_back_probe(96)[0], ALIGN_PROBES[1][1].repeat(2, 1), (5, 8), 1 / 4, 3)]


def _expect_back(backward, grad, boxes, map_size, scale, n, say) -> None:
    case = grad, boxes, map_size, scale, n
    expect_case(backward, case, _back_like(*case), say, BACK_WAYS, BACK_PROBES)


def one_sample_on_four_cells(backward) -> None:
    box = torch.tensor([[16.0, 24.0, 40.0, 40.0]])  # its centre, (28, 32), is at index y = 1.5, x = 1.25 at stride 16
    say = "a gradient of 8 of one sample at y = 1.5, x = 1.25 (cells, their centres are whole numbers)"
    _expect_back(backward, torch.full((1, 1, 1, 1), 8.0), box, (3, 5), 1 / 16, 1, say)


def four_samples_of_one_output(backward) -> None:
    box = torch.tensor([[16.0, 4.0, 59.0, 37.0]])
    _expect_back(backward, torch.ones(1, 1, 1, 1), box, (3, 5), 1 / 16, 2, "a gradient of 1 of a bin of 2 x 2 samples")


def neighbours_share_cells(backward) -> None:
    grad, box = torch.arange(1.0, 7.0).view(1, 1, 2, 3), torch.tensor([[10.0, 6.0, 71.0, 40.0]])
    _expect_back(backward, grad, box, (3, 5), 1 / 16, 2, "the gradients 1 to 6 of 2 x 3 bins")


def nothing_is_lost_inside(backward) -> None:
    g = torch.Generator().manual_seed(0)
    grad, box = torch.rand(1, 2, 2, 2, generator=g), torch.tensor([[20.0, 18.0, 90.0, 60.0]])
    got = backward(grad, box, (7, 11), 1 / 16, 2)
    with teacher("The weights of a sample sum to 1, so what goes in comes out"):
        expect_close(got.sum(dim=(1, 2)), grad.sum(dim=(0, 2, 3)), "the sum of each channel")


def what_lies_off_the_map(backward) -> None:
    """The first release of `aligned` in torchvision had the backward clamp unlike the forward (vision#2438)."""
    for box in ([-10.0, -6.0, 13.0, 9.0], [21.0, 11.0, 45.0, 30.0], [60.0, 40.0, 80.0, 50.0]):
        grad, say = torch.arange(1.0, 10.0).view(1, 1, 3, 3), f"the box {box} on a map of 32 x 20 pixels"
        _expect_back(backward, grad, torch.tensor([box]), (5, 8), 1 / 4, 2, say)


def several_RoIs_and_channels_at_once(backward) -> None:
    _expect_back(backward, *_back_probe(5), "4 RoIs, 3 channels")


def the_adjoint_of_the_forward(backward) -> None:
    """RoIAlign is linear in its features: <grad, A features> = <backward(grad), features>, for any two of them."""
    g = torch.Generator().manual_seed(2)
    features, boxes = torch.randn(2, 7, 11, generator=g, dtype=torch.float64), some_rois(5, 6)
    out = packages(features, boxes, (2, 3), 1 / 16, 3)
    grad = torch.randn(out.shape, generator=g, dtype=torch.float64)
    got = (backward(grad, boxes, (7, 11), 1 / 16, 3) * features).sum()
    with teacher("Forward and backward must read and write the same cells with the same weights"):
        expect_close(got, (grad * out).sum(), "sum of gradient * output, beside sum of feature * its gradient")


def float64_stays_float64(backward) -> None:
    grad = torch.ones(1, 2, 2, 3, dtype=torch.float64)
    expect_same_precision(backward(grad, torch.tensor([[3.0, 2.0, 19.0, 11.0]]), (5, 8), 1 / 4, 2), grad, "gradient")


def no_outputs(backward) -> None:
    got = backward(torch.zeros(0, 2, 3, 3), torch.zeros(0, 4), (4, 5), 1 / 16, 2)
    expect_close(got, torch.zeros(2, 4, 5), "without RoIs the features receive zeros")


def the_gradient_of_the_package(backward) -> None:
    for seed, size, stride, n in ((20, (2, 2), 16, 2), (21, (3, 2), 16, 1), (22, (1, 3), 8, 2)):
        map_size, boxes = (112 // stride, 176 // stride), some_rois(4, seed)
        leaf = torch.zeros(2, *map_size, dtype=torch.float64, requires_grad=True)
        out = packages(leaf, boxes, size, 1 / stride, n)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        (wanted,) = torch.autograd.grad(out, leaf, grad)
        case, say = (grad, boxes, map_size, 1 / stride, n), f"4 RoIs at stride {stride}, {n} x {n} samples"
        expect_case(backward, case, wanted, say, BACK_WAYS, BACK_PROBES)


@check(
    one_sample_on_four_cells, four_samples_of_one_output, neighbours_share_cells, what_lies_off_the_map,
    several_RoIs_and_channels_at_once, nothing_is_lost_inside, the_adjoint_of_the_forward,
    float64_stays_float64, no_outputs, the_gradient_of_the_package,
)  # fmt: skip
def check_roi_align_backward(student) -> None:
    """RoIAlign's gradient: (R, C, h, w), (R, 4), (H, W) -> (C, H, W)."""
