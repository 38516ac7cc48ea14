"""Notebook 08's checks: the package's RoIAlign passes, mistakes of real implementations fail, each with its hint."""

import math

import pytest
import torch
from planted import fails_with, passes, waits
from solved import solutions

from mrcnn_scratch.course.checks import check_bilinear, check_roi_align, check_roi_align_backward
from mrcnn_scratch.roi_ops import roi_align, roi_warp
from mrcnn_scratch.roi_ops.reference import roi_align_backward
from mrcnn_scratch.roi_ops.reference.sampling import bilinear


def package_bilinear(y, x, H, W):
    return bilinear(y, x, H, W, "aligned")


def package(features, boxes, size, scale, n=2, **options):
    return roi_align(features[None], [boxes.to(features.dtype)], size, scale, n, **options)


def package_backward(grad, boxes, map_size, scale, n=2, convention="aligned"):
    rows = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1).to(grad.dtype)
    shape = (1, grad.shape[1], *map_size)
    return torch.from_numpy(roi_align_backward(grad.numpy(), rows.numpy(), shape, scale, n, convention, False)[0])


@pytest.mark.parametrize(
    "check, function",
    [
        (check_bilinear, package_bilinear),
        (check_roi_align, package),
        (check_roi_align_backward, package_backward),
    ],
)
def test_the_packages_function_passes_and_an_unwritten_one_waits(check, function, capsys):
    passes(check, function, capsys)
    waits(check, capsys)


def cells(y, x, H, W, low=-1.0, high=0.0, far=False, clamp=True, swap=False):
    """Four cells and their weights once more; a sample counts from low to the length + high."""
    if swap:
        y, x = x, y
    if not (low <= y <= H + high and low <= x <= W + high):
        return []
    if clamp:
        y, x = min(max(y, 0), H - 1), min(max(x, 0), W - 1)
    y0, x0 = math.floor(y), math.floor(x)
    found = []
    for row, by_y in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
        for column, by_x in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
            weight = (1 - by_y) * (1 - by_x) if far else by_y * by_x
            if not clamp or weight:
                found.append((row, column, weight))
    return found


WRONG_BILINEAR = {
    "far cells weigh more": (lambda *a: cells(*a, far=True), "fractions have changed sides"),
    "nearest": (
        lambda y, x, H, W: [(min(max(int(y + 0.5), 0), H - 1), min(max(int(x + 0.5), 0), W - 1), 1.0)],
        "Only the nearest cell",
    ),
    "a quarter each": (lambda *a: [(y, x, 0.25) for y, x, _ in package_bilinear(*a)], "do not weigh a quarter each"),
    "half a cell taken off here, too (TRAPS 1)": (
        lambda y, x, H, W: package_bilinear(y - 0.5, x - 0.5, H, W), "half a cell further up and left"),
    "x before y": (lambda *a: cells(*a, swap=True), "yours is (x, y)"),
    "column before row": (lambda *a: [(x, y, weight) for y, x, weight in cells(*a)], "the order is row, column"),
    "nothing is off the map (TRAPS 4)": (lambda *a: cells(*a, low=-99, high=99), "an empty list"),
    "stops at the edge of the map (TRAPS 4)": (
        lambda *a: cells(*a, low=-0.5, high=-0.5), "half a cell, the edge of the map"),
    "stops at the centre (TRAPS 4)": (lambda *a: cells(*a, low=0, high=-1), "you stop at the centre"),
    "open ends (TRAPS 4)": (lambda *a: cells(*a, low=-0.99999, high=-0.00001), "At exactly -1 and exactly H or W"),
    "no clamp": (lambda *a: cells(*a, clamp=False), "is no cell of a map"),
    "three numbers in one tensor": (lambda *a: torch.tensor(cells(*a)), "must be a list of"),
    "cells without weights": (lambda *a: [c[:2] for c in cells(*a)], "each element must be (row, column, weight)"),
}  # fmt: skip


@pytest.mark.parametrize("wrong, hint", WRONG_BILINEAR.values(), ids=list(WRONG_BILINEAR))
def test_a_wrong_bilinear_fails_with_its_hint(wrong, hint):
    fails_with(check_bilinear, wrong, hint)


def table(boxes, size, map_size, scale, n, take=cells, offset=0.5, start=0.5, divide=True, kept_only=False):
    """(R, h, w, H, W): how much is read of each cell. Unlike the check's own: axis by axis, then sample by sample."""
    (h, w), (H, W) = size, map_size
    out = torch.zeros(len(boxes), h, w, H, W, dtype=torch.float64)
    for r, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        ys = [y1 * scale - start + (k + offset) * (y2 - y1) * scale / (h * n) for k in range(h * n)]
        xs = [x1 * scale - start + (k + offset) * (x2 - x1) * scale / (w * n) for k in range(w * n)]
        for p in range(h):
            for q in range(w):
                samples = [take(y, x, H, W) for y in ys[p * n : p * n + n] for x in xs[q * n : q * n + n]]
                count = sum(map(bool, samples)) or 1 if kept_only else n * n
                for row, column, weight in sum(samples, []):
                    out[r, p, q, row, column] += weight / (count if divide else 1)
    return out


def align(features, boxes, size, scale, n, **options):
    return torch.einsum(
        "rpqyx,cyx->rcpq", table(boxes, size, features.shape[1:], scale, n, **options), features.double()
    )


def back(grad, boxes, map_size, scale, n, **options):
    return torch.einsum("rcpq,rpqyx->cyx", grad.double(), table(boxes, grad.shape[2:], map_size, scale, n, **options))


def everywhere(*a):
    return cells(*a, low=-99, high=99)


def nearest(y, x, H, W):
    return [(round(min(max(y, 0), H - 1)), round(min(max(x, 0), W - 1)), 1.0)] if cells(y, x, H, W) else []


SWAP = [1, 0, 3, 2]
WRONG_ALIGN = {
    "float32 whatever it gets": (lambda *a: package(*a).float(), "features of float64 gave a result of float32"),
    "legacy, torchvision's default (TRAPS 1)": (lambda *a: package(*a, aligned=False), "without the half cell"),
    "no half cell (TRAPS 1)": (lambda *a: align(*a, start=0.0), "without the half cell"),
    "half a pixel, not half a cell": (
        lambda f, b, s, k, n: align(f, b, s, k, n, start=0.5 * k), "taken off in pixels, before scaling"),
    "RoIWarp (TRAPS 9)": (
        lambda f, b, s, k, n: roi_warp(f[None], [b.to(f.dtype)], s, k, n), "that is RoIWarp"),
    "corners of the parts (MNC)": (lambda *a: align(*a, offset=0.0), "read at its beginning"),
    "crop_and_resize (TRAPS 10)": (
        lambda f, b, s, k, n: crop_and_resize(f, b, s, k), "expected"),
    "one sample": (lambda f, b, s, k, n: package(f, b, s, k, 1), "These are the numbers of 1 x 1"),
    "always two (TRAPS 3)": (lambda f, b, s, k, n: package(f, b, s, k, 2), "These are the numbers of 2 x 2"),
    "largest sample": (lambda *a: package(*a, reduce="max"), "largest sample of each bin"),
    "sum": (lambda *a: align(*a, divide=False), "added up"),
    "mean of those on the map": (lambda *a: align(*a, kept_only=True), "divide by all samples"),
    "no border rule (TRAPS 4)": (lambda *a: align(*a, take=everywhere), "is off the map"),
    "nearest": (lambda *a: align(*a, take=nearest), "Only the nearest cell"),
    "pixels taken for cells": (lambda f, b, s, k, n: align(f, b, s, 1.0, n), "not to be scaled"),
    "x and y swapped": (lambda f, b, s, k, n: align(f, b[:, SWAP], s, k, n), "x and y of the boxes are swapped"),
    "output turned": (lambda *a: align(*a).transpose(2, 3), "expected"),
}  # fmt: skip


def crop_and_resize(features, boxes, size, scale):
    """TensorFlow's: one sample a bin, the outer ones on the corners."""
    (H, W), (h, w) = features.shape[1:], size
    out = torch.zeros(len(boxes), len(features), h, w, dtype=torch.float64)
    for r, (x1, y1, x2, y2) in enumerate((boxes * scale - 0.5).tolist()):
        for p in range(h):
            for q in range(w):
                y, x = y1 + p * (y2 - y1) / max(h - 1, 1), x1 + q * (x2 - x1) / max(w - 1, 1)
                for row, column, weight in cells(y, x, H, W):
                    out[r, :, p, q] += weight * features[:, row, column]
    return out


@pytest.mark.parametrize("wrong, hint", WRONG_ALIGN.values(), ids=list(WRONG_ALIGN))
def test_a_wrong_roi_align_fails_with_its_hint(wrong, hint):
    fails_with(check_roi_align, wrong, hint)


def overwriting(grad, boxes, map_size, scale, n):
    out, weights = grad.new_zeros(grad.shape[1], *map_size), table(boxes, grad.shape[2:], map_size, scale, n)
    for r, p, q, y, x in weights.nonzero().tolist():
        out[:, y, x] = grad[r, :, p, q] * weights[r, p, q, y, x]
    return out


WRONG_BACK = {
    "float32 whatever it gets": (
        lambda *a: package_backward(*a).float(), "gradient of float64 gave a result of float32"),
    "not divided": (lambda *a: back(*a, divide=False), "added up"),
    "overwrites": (overwriting, "yours keeps the last"),
    "legacy (TRAPS 1)": (lambda *a: package_backward(*a, convention="legacy"), "without the half cell"),
    "no border rule, unlike the forward (TRAPS 5)": (lambda *a: back(*a, take=everywhere), "nothing is sent there"),
    "border too early (TRAPS 5)": (
        lambda *a: back(*a, take=lambda *p: cells(*p, low=-0.5, high=-0.5)), "expected"),
    "nearest": (lambda *a: back(*a, take=nearest), "Only the nearest cell"),
    "a quarter each": (
        lambda *a: back(*a, take=lambda *p: [(y, x, 0.25) for y, x, _ in package_bilinear(*p)]), "a quarter each"),
    "one sample": (lambda g, b, m, k, n: back(g, b, m, k, 1), "These are the numbers of 1 x 1"),
    "RoIWarp's": (lambda *a: package_backward(*a, convention="warp"), "that is RoIWarp"),
    "first RoI only": (lambda g, b, m, k, n: back(g[:1], b[:1], m, k, n), "the first RoI alone"),
    "x and y swapped": (lambda g, b, m, k, n: back(g, b[:, SWAP], m, k, n), "x and y of the boxes are swapped"),
    "one map for all channels": (
        lambda g, b, m, k, n: back(g.sum(1, keepdim=True).expand_as(g), b, m, k, n), "its own gradients"),
    "map turned": (lambda *a: back(*a).transpose(1, 2), "must have shape (1, 3, 5)"),
}  # fmt: skip


@pytest.mark.parametrize("wrong, hint", WRONG_BACK.values(), ids=list(WRONG_BACK))
def test_a_wrong_backward_fails_with_its_hint(wrong, hint):
    fails_with(check_roi_align_backward, wrong, hint)


def test_what_the_planted_mistakes_stand_on_is_right(capsys):
    """Without their option the functions of this file pass: each fails for the mistake that it names."""
    passes(check_bilinear, cells, capsys)
    passes(check_roi_align, align, capsys)
    passes(check_roi_align_backward, back, capsys)


@pytest.mark.parametrize("seed", range(6))
def test_the_solutions_are_the_packages_roi_align(seed):
    my, g = solutions("08"), torch.Generator().manual_seed(seed)
    for y, x in (torch.rand(50, 2, generator=g) * 9 - 2).tolist():
        mine, theirs = torch.tensor(my["my_bilinear"](y, x, 4, 6)), torch.tensor(package_bilinear(y, x, 4, 6))
        torch.testing.assert_close(mine, theirs)
    n = 1 + seed % 3
    features = torch.randn(3, 7, 11, generator=g, dtype=torch.float64)
    corner = torch.rand(3, 2, generator=g, dtype=torch.float64) * torch.tensor([90.0, 50.0]) - 20
    boxes = torch.cat([corner, corner + torch.rand(3, 2, generator=g, dtype=torch.float64) * 60], dim=1)
    leaf = features.clone().requires_grad_()
    out = package(leaf, boxes, (3, 2), 1 / 8, n)
    torch.testing.assert_close(my["my_roi_align"](features, boxes, (3, 2), 1 / 8, n), out.detach())
    grad = torch.randn(out.shape, generator=g, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(out, leaf, grad)
    torch.testing.assert_close(my["my_roi_align_backward"](grad, boxes, (7, 11), 1 / 8, n), wanted)
