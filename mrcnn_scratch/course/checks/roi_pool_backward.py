"""Check of notebook 07: `my_roi_pool_backward`."""

import itertools
from functools import partial

import torch
from torch import Tensor

from ...roi_ops.reference import roi_pool_forward
from .kit import check, expect_close, teacher
from .roi_cases import distinct, expect_case, some_rois
from .roi_pool import packages


def winners_of(features: Tensor, boxes: Tensor, size, scale) -> Tensor:
    """(R, C, h, w) int64, the cell y * W + x that each output was read from, -1 where its bin has none."""
    rows = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1).double()
    _, winner = roi_pool_forward(features[None].double().numpy(), rows.numpy(), size, scale)
    return torch.from_numpy(winner).long()


def _back_like(grad, winner, size, add=True, skip=True, channels=True, share=False, turned=False) -> Tensor:
    """RoIPool's backward, and the ways to get it wrong."""
    (H, W), C = size, grad.shape[1]
    out, wins = grad.new_zeros(C, H * W), grad.new_zeros(C, H * W)
    for r, c, p, q in itertools.product(*map(range, grad.shape)):
        cell, into = int(winner[r, c, p, q]), c if channels else 0
        if cell >= 0 or not skip:
            out[into, cell] = grad[r, c, p, q] + (out[into, cell] if add else 0)
            wins[into, cell] += 1
    out = (out / wins.clamp(min=1) if share else out).view(C, H, W)
    return out.transpose(1, 2).reshape(C, H, W) if turned else out


BACK_WAYS = {
    "A cell that won several bins receives the gradients of all of them, added: yours keeps the last": partial(
        _back_like, add=False
    ),
    "A winner of -1 is no cell. As an index it is the last one, which has now got a gradient that is not its": partial(
        _back_like, skip=False
    ),
    "Winners of one cell are added, not averaged: the output of each bin moves with it": partial(
        _back_like, share=True
    ),
    "Each channel has its own winners: all gradients went into channel 0": partial(_back_like, channels=False),
    "Rows and columns are mixed up: cell number y * W + x, with W cells in a row": partial(_back_like, turned=True),
    "Every RoI counts, not the first alone": lambda grad, winner, size: _back_like(grad[:1], winner[:1], size),
}


def _back_probe(seed: int, size=(5, 7)) -> tuple:
    g = torch.Generator().manual_seed(seed)
    winner = torch.randint(-1, size[0] * size[1], (4, 3, 2, 2), generator=g)
    return torch.randn(4, 3, 2, 2, generator=g), winner, size


def _expect_back(backward, grad, winner, size, say) -> None:
    case = grad, winner, size
    expect_case(backward, case, _back_like(*case), say, BACK_WAYS, [_back_probe(80)])


def two_bins_with_one_winner(backward) -> None:
    grad, winner = torch.tensor([[[[1.0, 10.0]]]]), torch.tensor([[[[2, 2]]]])
    wanted, say = torch.tensor([[[0.0, 0, 11, 0, 0, 0]]]), "gradients 1 and 10 of two bins that cell 2 has won"
    expect_case(backward, (grad, winner, (1, 6)), wanted, say, BACK_WAYS, [_back_probe(80)])


def a_bin_without_cells(backward) -> None:
    grad, winner = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]]]), torch.tensor([[[[7, -1], [-1, 9]]]])
    _expect_back(backward, grad, winner, (3, 5), "winners 7, -1, -1 and 9 on a map of 3 x 5")


def rows_before_columns(backward) -> None:
    grad, winner = torch.arange(1.0, 7.0).view(1, 1, 2, 3), torch.tensor([[[[0, 3, 6], [8, 11, 12]]]])
    _expect_back(backward, grad, winner, (3, 7), "winners on a map of 3 rows and 7 columns")


def channels_and_RoIs_apart(backward) -> None:
    _expect_back(backward, *_back_probe(0), "4 RoIs and 3 channels")


def nothing_is_lost(backward) -> None:
    g = torch.Generator().manual_seed(1)
    grad, winner = torch.rand(6, 2, 3, 3, generator=g), torch.randint(0, 6, (6, 2, 3, 3), generator=g)
    got = backward(grad, winner, (2, 3))
    with teacher("Every gradient arrives somewhere: the sums of a channel before and after are equal"):
        expect_close(got.sum(dim=(1, 2)), grad.sum(dim=(0, 2, 3)), "the sum of each channel")


def no_outputs(backward) -> None:
    got = backward(torch.zeros(0, 2, 3, 3), torch.zeros(0, 2, 3, 3, dtype=torch.long), (4, 5))
    expect_close(got, torch.zeros(2, 4, 5), "without RoIs the features receive zeros")


def the_gradient_of_the_package(backward) -> None:
    for seed, size, stride in ((20, (2, 2), 16), (21, (3, 4), 16), (22, (2, 3), 8)):
        features, boxes = distinct(2, 112 // stride, 176 // stride, seed), some_rois(5, seed)
        leaf = features.clone().requires_grad_()
        out = packages(leaf, boxes, size, 1 / stride)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        (wanted,) = torch.autograd.grad(out, leaf, grad)
        case = grad, winners_of(features, boxes, size, 1 / stride), tuple(features.shape[1:])
        expect_case(backward, case, wanted, f"5 RoIs at stride {stride}", BACK_WAYS, [_back_probe(80)])


@check(
    two_bins_with_one_winner, a_bin_without_cells, rows_before_columns, channels_and_RoIs_apart, nothing_is_lost,
    no_outputs, the_gradient_of_the_package,
)  # fmt: skip
def check_roi_pool_backward(student) -> None:
    """RoIPool's gradient: (R, C, h, w) and the winners -> (C, H, W)."""
