"""What the checks of RoI ops share: features and RoIs that find faults, and a way to tell which mistake was made."""

from collections.abc import Callable

import torch
from torch import Tensor

from .kit import Wrong, expect_close, expect_tensor


def distinct(C: int, H: int, W: int, seed: int) -> Tensor:
    """(C, H, W) features without two that are equal, so that every maximum has one winner."""
    g = torch.Generator().manual_seed(seed)
    return torch.randperm(C * H * W, generator=g).view(C, H, W).double() - C * H * W // 2


def some_rois(count: int, seed: int, size=(176.0, 112.0)) -> Tensor:
    """(count, 4) RoIs in and around an image that is wider than high; every third has corners on whole 4 pixels."""
    g = torch.Generator().manual_seed(seed)
    span = torch.tensor(size, dtype=torch.float64)
    corner = torch.rand(count, 2, generator=g, dtype=torch.float64) * span * 1.2 - span * 0.2
    sides = 2 + torch.rand(count, 2, generator=g, dtype=torch.float64) * span * 0.6
    boxes = torch.cat([corner, corner + sides], dim=1)
    boxes[::3] = (boxes[::3] / 4).round() * 4
    return boxes


def expect_case(student: Callable, case: tuple, wanted: Tensor, say: str, ways: dict[str, Callable], probes) -> None:
    """Raises Wrong unless student(*case) is as wanted, with the hint of the mistake that was made.

    Args:
        ways: hint -> the function with that mistake. Two mistakes may give the same numbers for a small case: told is
            one which also does on the probes what the student's function does.
        probes: more cases, which differ in all that matters.
    """
    got = student(*case)
    expect_tensor(got, wanted.shape)
    try:
        expect_close(got, wanted, say)
    except Wrong:
        fits = [hint for hint, way in ways.items() if _same(way(*case), got)]
        sure = [hint for hint in fits if all(_same(ways[hint](*probe), _try(student, probe)) for probe in probes)]
        expect_close(got, wanted, say, {hint: got for hint in (sure or fits)[:1]})


def _same(a: Tensor, b: Tensor | None) -> bool:
    return isinstance(b, Tensor) and a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-4)


def _try(student: Callable, case: tuple) -> Tensor | None:
    try:
        return student(*case)
    except Exception:  # it has another mistake as well
        return None


def expect_same_precision(got: Tensor, given: Tensor, what: str) -> None:
    """Raises Wrong unless the result is as precise as what it was made from: gradcheck, later, needs float64."""
    if got.dtype != given.dtype:
        here, there = (str(tensor.dtype).removeprefix("torch.") for tensor in (given, got))
        raise Wrong(f"{what} of {here} gave a result of {there}: make it in the dtype and on the device of the {what}")
