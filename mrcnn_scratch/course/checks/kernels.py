"""Check of notebook 09: `my_align_numba`."""

import functools
import re
import warnings

import numpy as np
import torch

from ...roi_ops import roi_align
from .kit import Wrong, check, expect_close, teacher

# numba is imported where it is needed: it takes a second, and most notebooks do without

COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def some_case(seed: int, size=(3, 7, 12), rois=4, scale=0.25) -> tuple[np.ndarray, np.ndarray, float]:
    """A map (C, H, W) wider than high, boxes (R, 4) in image pixels that lie on it, and the scale: float32."""
    g = torch.Generator().manual_seed(seed)
    _, H, W = size
    room = torch.tensor([W, H]) / scale
    corner = torch.rand(rois, 2, generator=g) * room * 0.5
    sides = room * (0.2 + 0.3 * torch.rand(rois, 2, generator=g))
    boxes = torch.cat([corner, corner + sides], dim=1).float()
    return torch.randn(size, generator=g).numpy(), boxes.numpy(), scale


def _package(features, boxes, h, w, scale, ratio, aligned=True) -> torch.Tensor:
    """(C, H, W) and (R, 4) -> (R, C, h, w), by the package."""
    options = {"backend": "torch", "aligned": aligned}
    return roi_align(torch.tensor(features)[None], [torch.tensor(boxes)], (h, w), scale, ratio, **options)


def _mistakes(features, boxes, h, w, scale, ratio) -> dict:
    case = (h, w, scale, ratio)
    boxes = np.asarray(boxes)
    sides = np.stack([(boxes[:, 2] - boxes[:, 0]) / w, (boxes[:, 3] - boxes[:, 1]) / h], axis=1) / (2 * ratio)
    half_a_part = np.concatenate([sides, sides], axis=1).astype(np.float32)
    turned = np.ascontiguousarray(boxes[:, [1, 0, 3, 2]])
    plus_one = boxes + np.float32([0, 0, 1, 1])
    return {
        "The half cell is missing: the centre of cell 0 lies at 0.5, so the continuous x is read at x - 0.5": lambda: (
            _package(features, boxes, *case, aligned=False)
        ),
        "These are the sums of the samples: a bin is their mean": lambda: _package(features, boxes, *case) * ratio**2,
        "Each sample is read at the corner of its part of the bin; it is to be in the middle, at i + 0.5": lambda: (
            _package(features, boxes - half_a_part, *case)
        ),
        "One sample for each bin: the argument ratio asks for ratio x ratio of them": lambda: _package(
            features, boxes, h, w, scale, 1
        ),
        "The corners are rounded to whole cells: that is what RoIAlign does away with": lambda: _package(
            features, np.round(boxes * scale) / scale, *case
        ),
        "The boxes are in pixels of the image: multiply them by scale": lambda: _package(
            features, boxes, h, w, 1.0, ratio
        ),
        "x and y seem to be swapped: a box is x1, y1, x2, y2, a map is indexed [channel, row, column]": lambda: (
            _package(features, turned, *case)
        ),
        "The width counts one pixel more: it is x2 - x1": lambda: _package(features, plus_one, *case),
        "All channels are those of channel 0": lambda: _package(features, boxes, *case)[:, :1].expand(
            -1, len(features), -1, -1
        ),
        "All RoIs are the first one": lambda: _package(features, boxes[:1], *case).expand(len(boxes), -1, -1, -1),
    }


def _expect_pooled(got, features, boxes, h, w, scale, ratio, say: str) -> None:
    if isinstance(got, torch.Tensor) or not isinstance(got, np.ndarray):
        raise Wrong(f"the result must be a NumPy array, which is what Numba knows; it is a {type(got).__name__}")
    mistakes = _mistakes(features, boxes, h, w, scale, ratio) if len(boxes) else {}
    expect_close(torch.from_numpy(got), _package(features, boxes, h, w, scale, ratio), say, mistakes, 1e-5)
    if got.dtype != features.dtype:
        raise Wrong(f"{say}: the map is {features.dtype}, so the result must be, too; it is {got.dtype}")


@functools.lru_cache(maxsize=8)
def _njit(function, parallel: bool):
    """Compiled once for all trials."""
    import numba

    return numba.njit(parallel=parallel)(function)


def _python(student):
    """The student's own function, without kit's wrapper and without a decorator of Numba's."""
    inner = getattr(student, "__wrapped__", student)
    return getattr(inner, "py_func", inner)


def compiled(student, parallel: bool):
    """The student's function, compiled; what Numba cannot compile is told in words."""
    from numba.core.errors import NumbaError, NumbaPerformanceWarning

    def call(*arguments):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NumbaPerformanceWarning)
            try:
                return _njit(_python(student), parallel)(*arguments)
            except NumbaError as error:
                lines = [line.strip() for line in COLOURS.sub("", str(error)).splitlines() if line.strip()]
                line = next((line for line in lines if not line.startswith("Failed in nopython mode")), "")
                raise Wrong(
                    f"Numba cannot compile it ({type(error).__name__}: {line[:160]}). Inside may be numbers, NumPy "
                    "arrays, loops and other compiled functions; no torch, no dictionaries, no classes"
                ) from None

    return call


def the_ramp(align) -> None:
    """Detectron2's oracle: a 5 x 5 ramp, one RoI, 4 x 4 bins."""
    ramp = np.arange(25, dtype=np.float32).reshape(1, 5, 5)
    box = np.float32([[1, 1, 3, 3]])
    _expect_pooled(align(ramp, box, 4, 4, 1.0, 2), ramp, box, 4, 4, 1.0, 2, "the RoI [1, 1, 3, 3] of a 5 x 5 ramp")


def a_wide_map_and_wide_bins(align) -> None:
    features, boxes, scale = some_case(0)
    say = "4 RoIs of a map of 3 channels, 7 x 12 cells, 2 x 3 bins, stride 4"
    _expect_pooled(align(features, boxes, 2, 3, scale, 2), features, boxes, 2, 3, scale, 2, say)


def other_numbers_of_samples(align) -> None:
    features, boxes, scale = some_case(1, rois=2)
    for ratio in (1, 3):
        say = f"{ratio} x {ratio} samples in a bin"
        _expect_pooled(align(features, boxes, 2, 3, scale, ratio), features, boxes, 2, 3, scale, ratio, say)


def over_the_border(align) -> None:
    features, _, scale = some_case(2)
    boxes = np.float32([[-9, -5, 12, 11], [30, 20, 60, 44], [-40, 0, -20, 10], [20, 10, 20.5, 10.25]])
    say = "RoIs that hang over the border, lie beyond it, or are smaller than a cell"
    _expect_pooled(align(features, boxes, 3, 2, scale, 2), features, boxes, 3, 2, scale, 2, say)


def no_boxes(align) -> None:
    features, boxes, scale = some_case(3)
    say = "no RoIs at all, which gives (0, C, h, w)"
    _expect_pooled(align(features, boxes[:0], 2, 3, scale, 2), features, boxes[:0], 2, 3, scale, 2, say)


def compiled_by_numba(align) -> None:
    features, boxes, scale = some_case(4)
    got = compiled(align, parallel=False)(features, boxes, 2, 3, scale, 2)
    _expect_pooled(got, features, boxes, 2, 3, scale, 2, "compiled")


def shared_between_threads(align) -> None:
    if "prange" not in _python(align).__code__.co_names:
        raise Wrong("no loop is shared between threads: let the outermost one, over the RoIs, run over prange(...)")
    run = compiled(align, parallel=True)
    with teacher("Right with one thread, wrong with several: what two RoIs write to must not be one place"):
        for seed in range(5, 9):
            features, boxes, scale = some_case(seed, (8, 20, 33), rois=64)
            for _ in range(3):
                got = run(features, boxes, 7, 5, scale, 2)
                _expect_pooled(got, features, boxes, 7, 5, scale, 2, "compiled with parallel=True, 64 RoIs")


def random_rois_against_the_package(align) -> None:
    run = compiled(align, parallel=False)
    for seed in range(10, 16):
        size = (2 + seed % 3, 6 + seed % 5, 9 + seed % 7)
        features, boxes, scale = some_case(seed, size, rois=seed, scale=1 / (1 + seed % 4))
        got = run(features, boxes, 3, 4, scale, 2)
        _expect_pooled(got, features, boxes, 3, 4, scale, 2, f"{seed} RoIs of a map {size}")


@check(
    the_ramp, a_wide_map_and_wide_bins, other_numbers_of_samples, over_the_border, no_boxes, compiled_by_numba,
    shared_between_threads, random_rois_against_the_package,
)  # fmt: skip
def check_align_numba(student) -> None:
    """RoIAlign of one map: (C, H, W), (R, 4), h, w, scale, ratio -> (R, C, h, w), NumPy arrays, in loops."""
