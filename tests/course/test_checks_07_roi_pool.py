"""Notebook 07's checks: the package's RoIPool passes, the mistakes of real implementations fail, each with its hint."""

import math

import pytest
import torch
from planted import fails_with, passes, waits
from solved import solutions

from mrcnn_scratch.course.checks import check_roi_pool, check_roi_pool_backward
from mrcnn_scratch.roi_ops import roi_pool
from mrcnn_scratch.roi_ops.reference import roi_pool_backward, roi_pool_forward


def package(features, boxes, size, scale):
    return roi_pool(features[None], [boxes.to(features.dtype)], size, scale)


def package_backward(grad, winner, map_size):
    N, C = 1, grad.shape[1]
    rows = torch.zeros(len(grad), 5, dtype=grad.dtype)
    return torch.from_numpy(roi_pool_backward(grad.numpy(), winner.numpy(), rows.numpy(), (N, C, *map_size), False)[0])


@pytest.mark.parametrize("check, function", [(check_roi_pool, package), (check_roi_pool_backward, package_backward)])
def test_the_packages_function_passes_and_an_unwritten_one_waits(check, function, capsys):
    passes(check, function, capsys)
    waits(check, capsys)


def away(v):
    return int(math.copysign(math.floor(abs(v) + 0.5), v))


def pool(features, boxes, size, scale, rounding=away, plus=1, exact=False, start=-math.inf, wrap=False, cut=False):
    """RoIPool once more, with integers alone in the bins if exact: written unlike the check's own."""
    (C, H, W), (h, w) = features.shape, size
    out = torch.zeros(len(boxes), C, h, w, dtype=features.dtype)
    for r, box in enumerate(boxes.tolist()):
        x1, y1, x2, y2 = (rounding(v * scale) for v in box)
        if cut:
            x1, x2, y1, y2 = (min(max(v, 0), n - 1) for v, n in ((x1, W), (x2, W), (y1, H), (y2, H)))
        for p in range(h):
            for q in range(w):
                rows, columns = ends(y1, y2 + plus - y1, p, h, exact), ends(x1, x2 + plus - x1, q, w, exact)
                low = (lambda v: v) if wrap else (lambda v: max(v, 0))
                part = features[:, low(rows[0]) : low(rows[1]), low(columns[0]) : low(columns[1])].flatten(1)
                if part.shape[1]:
                    out[r, :, p, q] = part.amax(1).clamp(min=start)
    return out


def ends(first, count, p, bins, exact):
    if exact:
        return first + p * count // bins, first - (-(p + 1) * count // bins)
    return first + math.floor(p * (count / bins)), first + math.ceil((p + 1) * (count / bins))


def floors(features, boxes, size, scale):
    """Bins that end at the floor, so that none overlap."""
    out = package(features, boxes, size, scale).clone()
    for r, box in enumerate(boxes.tolist()):
        x1, y1, x2, y2 = (away(v * scale) for v in box)
        for p in range(size[0]):
            for q in range(size[1]):
                y, x = ((y2 - y1 + 1) / size[0], (x2 - x1 + 1) / size[1])
                rows = slice(max(y1 + math.floor(p * y), 0), max(y1 + math.floor((p + 1) * y), 0))
                columns = slice(max(x1 + math.floor(q * x), 0), max(x1 + math.floor((q + 1) * x), 0))
                part = features[:, rows, columns].flatten(1)
                out[r, :, p, q] = part.amax(1) if part.shape[1] else 0
    return out


def test_bins_of_exact_whole_numbers_pass_as_those_of_floats_do(capsys):
    """(p * count) // bins is right, too: no trial depends on how a fraction is rounded."""
    passes(check_roi_pool, lambda *a: pool(*a, exact=True), capsys)
    passes(check_roi_pool, pool, capsys)


WRONG = {
    "halves to even (TRAPS 7)": (lambda *a: pool(*a, rounding=round), "away from zero"),
    "torch.round (TRAPS 7)": (
        lambda f, b, s, k: package(f, (b * k).round(), s, 1.0), "halves rounded to the even neighbour"),
    "corners cut off": (lambda *a: pool(*a, rounding=math.floor), "cut off, not rounded"),
    "halves up": (lambda *a: pool(*a, rounding=lambda v: math.floor(v + 0.5)), "away from zero: adding 0.5"),
    "end exclusive (TRAPS 7)": (lambda *a: pool(*a, plus=0), "Both corners belong to the RoI"),
    "bins that do not overlap (TRAPS 7)": (floors, "neighbours share that cell"),
    "maximum starts at 0 (TRAPS 7)": (lambda *a: pool(*a, start=0.0), "not compared with 0"),
    "negative slice (TRAPS 7)": (lambda *a: pool(*a, wrap=True), "counts from the far end"),
    "cut off before it is divided": (lambda *a: pool(*a, cut=True), "divide first"),
    "divides by the scale": (lambda f, b, s, k: pool(f, b, s, 1 / k), "multiply by it"),
    "pixels taken for cells": (lambda f, b, s, k: pool(f, b, s, 1.0), "not to be scaled"),
    "x and y swapped": (lambda f, b, s, k: pool(f, b[:, [1, 0, 3, 2]], s, k), "x and y of the boxes are swapped"),
    "output turned": (lambda *a: pool(*a).transpose(2, 3), "must have shape (1, 1, 1, 2)"),
    "one RoI only": (lambda f, b, s, k: pool(f, b[:1], s, k), "must have shape (4, 3, 2, 3)"),
    "stops without RoIs": (lambda f, b, s, k: torch.stack(list(pool(f, b, s, k))), "RuntimeError"),
}  # fmt: skip


@pytest.mark.parametrize("wrong, hint", WRONG.values(), ids=list(WRONG))
def test_a_wrong_roi_pool_fails_with_its_hint(wrong, hint):
    fails_with(check_roi_pool, wrong, hint)


def by_height(grad, winner, map_size):
    out = grad.new_zeros(grad.shape[1], *map_size)
    for (r, c, p, q), cell in zip(torch.cartesian_prod(*map(torch.arange, grad.shape)), winner.flatten(), strict=True):
        out[c, cell // map_size[0], cell % map_size[0]] += grad[r, c, p, q]
    return out


def back(grad, winner, map_size, accumulate=True, drop=True, mean=False):
    """Vectorised, unlike the check's own."""
    C, (H, W) = grad.shape[1], map_size
    g, cell = (x.transpose(0, 1).reshape(C, -1) for x in (grad, winner))
    valid = cell >= 0 if drop else torch.ones_like(cell, dtype=torch.bool)
    out = grad.new_zeros(C, H * W)
    for c in range(C):
        at, what = cell[c][valid[c]], g[c][valid[c]]
        if mean:
            what = what / torch.bincount(at, minlength=H * W)[at]
        out[c].index_put_((at,), what, accumulate=accumulate)
    return out.view(C, H, W)


WRONG_BACK = {
    "the last bin wins": (lambda *a: back(*a, accumulate=False), "yours keeps the last"),
    "-1 is the last cell": (lambda *a: back(*a, drop=False), "A winner of -1 is no cell"),
    "averaged": (lambda *a: back(*a, mean=True), "added, not averaged"),
    "H cells in a row": (by_height, "stopped with IndexError"),
    "map turned": (lambda g, w, s: back(g, w, s).transpose(1, 2), "must have shape (1, 1, 6)"),
    "turned and reshaped": (lambda g, w, s: back(g, w, s).transpose(1, 2).reshape(-1, *s), "columns are mixed up"),
    "first RoI only": (lambda g, w, s: back(g[:1], w[:1], s), "not the first alone"),
    "all into channel 0": (
        lambda g, w, s: torch.cat([back(g, w, s).sum(0, keepdim=True), torch.zeros(g.shape[1] - 1, *s)]),
        "all gradients went into channel 0",
    ),
    "one channel too many": (lambda g, w, s: back(g, w, s)[None], "must have shape (1, 1, 6)"),
}


@pytest.mark.parametrize("wrong, hint", WRONG_BACK.values(), ids=list(WRONG_BACK))
def test_a_wrong_backward_fails_with_its_hint(wrong, hint):
    fails_with(check_roi_pool_backward, wrong, hint)


@pytest.mark.parametrize("seed", range(6))
def test_the_solutions_are_the_packages_roi_pool(seed):
    """Random RoIs, inside and outside; features with ties, too, for the forward."""
    my, g = solutions("07"), torch.Generator().manual_seed(seed)
    features = torch.randn(3, 7, 11, generator=g, dtype=torch.float64)
    corner = torch.rand(5, 2, generator=g, dtype=torch.float64) * torch.tensor([90.0, 50.0]) - 20
    boxes = torch.cat([corner, corner + torch.rand(5, 2, generator=g, dtype=torch.float64) * 60], dim=1)
    leaf = features.clone().requires_grad_()
    out = package(leaf, boxes, (3, 2), 1 / 8)
    torch.testing.assert_close(my["my_roi_pool"](features, boxes, (3, 2), 1 / 8), out.detach(), rtol=0, atol=0)
    grad = torch.randn(out.shape, generator=g, dtype=torch.float64)
    rows = torch.cat([torch.zeros(5, 1, dtype=torch.float64), boxes], dim=1).numpy()
    winner = torch.from_numpy(roi_pool_forward(features[None].numpy(), rows, (3, 2), 1 / 8)[1]).long()
    (wanted,) = torch.autograd.grad(out, leaf, grad)
    torch.testing.assert_close(my["my_roi_pool_backward"](grad, winner, (7, 11)), wanted)
