"""Notebook 09's checks: the package's functions pass, the mistakes of real kernels fail, each with its hint."""

import functools

import numpy as np
import pytest
import torch
from numba import njit, objmode, prange
from planted import fails_with, passes, waits
from solved import solutions

from mrcnn_scratch import roi_align
from mrcnn_scratch.course.checks import Wrong, check_align_numba, check_thread_place
from mrcnn_scratch.roi_ops.numba_cuda.threads import single_channel

# ---- RoIAlign of one map


def by_package(features, boxes, h, w, scale, ratio):
    rois = [torch.from_numpy(np.ascontiguousarray(boxes))]
    return roi_align(torch.from_numpy(features)[None], rois, (h, w), scale, ratio, backend="reference").numpy()


def package_align(features, boxes, h, w, scale, ratio):
    """The package's function where Numba can call it: back in Python, for a while."""
    for _ in prange(1):
        pass
    with objmode(out="float32[:, :, :, ::1]"):
        out = by_package(features, boxes, h, w, scale, ratio)
    return out


@njit
def read(plane, y, x):
    """Bilinear, with RoIAlign's border."""
    H, W = plane.shape
    if y < -1 or y > H or x < -1 or x > W:
        return 0.0
    y, x = min(max(y, 0.0), H - 1.0), min(max(x, 0.0), W - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, H - 1), min(left + 1, W - 1)
    upper = plane[top, left] * (1 - x + left) + plane[top, right] * (x - left)
    lower = plane[bottom, left] * (1 - x + left) + plane[bottom, right] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)


def make(half=0.5, middle=0.5, mean=True, one_sample=False, round_corners=False, scaled=True, plus=0.0, swap=False,
         first_channel=False, first_roi=False):  # fmt: skip
    """RoIAlign in loops, with a mistake where an option says so."""
    x_low, y_low = (1, 0) if swap else (0, 1)

    def align(features, boxes, h, w, scale, ratio):
        out = np.zeros((len(boxes), len(features), h, w), features.dtype)
        n = 1 if one_sample else ratio
        for r in prange(len(boxes)):
            box = boxes[0 if first_roi else r] * (scale if scaled else 1.0)
            if round_corners:
                box = np.round(box)
            x1, y1, width, height = box[x_low], box[y_low], box[x_low + 2] - box[x_low], box[y_low + 2] - box[y_low]
            width, height = width + plus * scale, height + plus * scale
            for c in range(len(features)):
                for p in range(h):
                    for q in range(w):
                        total = 0.0
                        for i in range(n):
                            for j in range(n):
                                y = y1 - half + height * (p + (i + middle) / n) / h
                                x = x1 - half + width * (q + (j + middle) / n) / w
                                total += read(features[0 if first_channel else c], y, x)
                        out[r, c, p, q] = total / n**2 if mean else total
        return out

    return align


def not_shared(features, boxes, h, w, scale, ratio):
    return right(features, boxes, h, w, scale, ratio)


right = njit(make())


def in_torch(features, boxes, h, w, scale, ratio):
    return roi_align(torch.from_numpy(features)[None], [torch.from_numpy(boxes)], (h, w), scale, ratio)


def through_torch(features, boxes, h, w, scale, ratio):
    return in_torch(features, boxes, h, w, scale, ratio).numpy()


def in_double(features, boxes, h, w, scale, ratio):
    return right(features.astype(np.float64), boxes, h, w, scale, ratio)


WRONG_ALIGN = {
    "no half cell (TRAPS 1)": (make(half=0.0), "The half cell is missing"),
    "sums": (make(mean=False), "a bin is their mean"),
    "corners of the parts": (make(middle=0.0), "in the middle, at i + 0.5"),
    "one sample (TRAPS 3)": (make(one_sample=True), "the argument ratio asks for"),
    "rounded corners": (make(round_corners=True), "rounded to whole cells"),
    "no scale": (make(scaled=False), "multiply them by scale"),
    "width + 1 (TRAPS 18)": (make(plus=1.0), "counts one pixel more"),
    "x and y swapped": (make(swap=True), "x and y seem to be swapped"),
    "channel 0 everywhere": (make(first_channel=True), "those of channel 0"),
    "RoI 0 everywhere": (make(first_roi=True), "All RoIs are the first one"),
    "a tensor": (in_torch, "must be a NumPy array"),
    "torch inside": (through_torch, "Numba cannot compile it"),
    "double": (in_double, "the result must be, too; it is float64"),
    "no prange": (not_shared, "no loop is shared between threads"),
}


def test_the_packages_align_passes_and_an_unwritten_one_waits(capsys):
    passes(check_align_numba, package_align, capsys)
    waits(check_align_numba, capsys)


def test_a_decorated_solution_passes_too(capsys):
    passes(check_align_numba, njit(make()), capsys)


@pytest.mark.parametrize("wrong, hint", WRONG_ALIGN.values(), ids=list(WRONG_ALIGN))
def test_a_wrong_align_fails_with_its_hint(wrong, hint):
    fails_with(check_align_numba, wrong, hint)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("parallel", [False, True])
def test_the_solution_is_the_packages_align(seed, parallel):
    g = torch.Generator().manual_seed(seed)
    features, low = torch.randn(5, 11, 17, generator=g), torch.rand(9, 2, generator=g) * 70 - 10
    boxes = torch.cat([low, low + 0.5 + torch.rand(9, 2, generator=g) * 60], dim=1)
    mine = compiled(parallel)(features.numpy(), boxes.numpy(), 3, 5, 1 / 6, 2)
    theirs = roi_align(features[None], [boxes], (3, 5), 1 / 6, 2, backend="numba")
    torch.testing.assert_close(torch.from_numpy(mine), theirs, rtol=1e-5, atol=1e-5)


@functools.cache
def compiled(parallel: bool):
    return njit(parallel=parallel)(solutions("09")["my_align_numba"])


# ---- which output is a thread's


def package_place(index, C, h, w):
    """As the package's kernels that work on one channel: a block's RoI, then the thread's place in it."""
    work = getattr(single_channel(False), "py_func", single_channel(False))
    place, c = work(np.uint32(index % (C * h * w)), np.int32(C), np.int32(h * w))
    return index // (C * h * w), int(c), int(place) // w, int(place) % w


def numbers(index, C, h, w):
    """The right answer, to be spoilt."""
    return index // (w * h * C), index // (w * h) % C, index // w % h, index % w


def one_twice(index, C, h, w):
    """All as it should be in the first plane; then each plane once more."""
    return numbers(index if index < h * w else index - h * w, C, h, w)


WRONG_PLACE = {
    "channels fastest": (
        lambda i, C, h, w: (i // (C * w * h), i % C, i // (C * w) % h, i // C % w),
        "the order of channels_last",
    ),
    "rows fastest": (lambda i, C, h, w: (i // (C * w * h), i // (w * h) % C, i % h, i // h % w), "Rows of bins count"),
    "h for w": (lambda i, C, h, w: (i // (C * w * h), i // (w * h) % C, i // h % w, i % h), "you divide by h"),
    "p and q swapped": (lambda *a: tuple(numbers(*a)[k] for k in (0, 1, 3, 2)), "p is the row, and q, the column"),
    "channel not cut off": (lambda i, C, h, w: (i // (w * h * C), i // (w * h), i // w % h, i % w), "cut off at C"),
    "from the last to the first": (lambda *a: numbers(*a)[::-1], "RoI, channel, row, column"),
    "from 1": (lambda i, C, h, w: numbers(max(i - 1, 0), C, h, w), "counted from 0"),
    "a float": (lambda i, C, h, w: (i / (w * h * C), *numbers(i, C, h, w)[1:]), "divide whole numbers with //"),
    "one number": (lambda i, C, h, w: i % w, "must be four numbers"),
    "NumPy's": (lambda i, C, h, w: tuple(np.unravel_index(i, (10**6, C, h, w))), "Numba cannot compile it"),
    "two threads on one output": (one_twice, "expected"),
}


def test_the_packages_place_and_an_unwritten_one(capsys):
    for trial in check_thread_place.trials[:-1]:  # the last compiles it, and the package's makes no tuple of integers
        trial(package_place)
    passes(check_thread_place, numbers, capsys)
    waits(check_thread_place, capsys)


@pytest.mark.parametrize("wrong, hint", WRONG_PLACE.values(), ids=list(WRONG_PLACE))
def test_a_wrong_place_fails_with_its_hint(wrong, hint):
    fails_with(check_thread_place, wrong, hint)


def test_two_threads_on_one_output_are_named():
    by_name = {trial.__name__: trial for trial in check_thread_place.trials}
    with pytest.raises(Wrong, match=r"threads 0 and 15 of 3 RoIs, 2 channels, 3 x 5 bins both work on \(0, 0, 0"):
        by_name["every_output_has_one_thread"](one_twice)


@pytest.mark.parametrize("C, h, w", [(3, 2, 4), (256, 7, 14), (1, 5, 1)])
def test_the_solution_is_the_packages_place(C, h, w):
    mine = solutions("09")["my_thread_place"]
    for index in torch.randint(0, 100 * C * h * w, (100,), generator=torch.Generator().manual_seed(C)).tolist():
        assert mine(index, C, h, w) == package_place(index, C, h, w) == np.unravel_index(index, (100, C, h, w))
