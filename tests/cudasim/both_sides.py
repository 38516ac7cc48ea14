"""Both sides of every RoI op, the CUDA kernel in the simulator and the reference loop, and the boxes to try them on."""

import math
from unittest import mock

import torch

from mrcnn_scratch.roi_ops import numba_cuda, reference

BINS, SCALE = (2, 3), 0.25
CONVENTIONS, LAYOUTS = ("aligned", "legacy", "warp", "mnc"), (False, True)  # plain, channels_last


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def ordinary_boxes(dtype=torch.float64):
    """On two maps of 5 x 7 cells at stride 4. Some samples of 2 x 3 bins lie exactly where a border rule changes."""
    rows = [
        [0, 3.3, 2.2, 21.7, 15.1],
        [1, -7.1, 4.9, 9.4, 26.3],
        [1, 13.0, 9.0, 4.0, 3.0],  # inside out
        [0, 9.0, 9.0, 9.0, 9.0],  # no size
        [1, 40.0, -30.0, 60.0, -12.0],  # off the map
        [0, 9.2, 6.1, 10.3, 7.0],  # smaller than a cell
        [0, -4.0, -4.0, 20.0, 12.0],  # aligned, 2 samples: the first at -1
        [1, 8.0, 8.0, 32.0, 24.0],  # the last at H and W
        [0, -6.0, -6.0, 18.0, 10.0],  # the same of legacy
        [1, 6.0, 6.0, 30.0, 22.0],
        [0, -4.0, -4.0, 4.0, 0.0],  # mnc, 2 samples: at -0.5
        [1, 24.0, 16.0, 32.0, 20.0],  # at H - 0.5 and W - 0.5
        [0, -2.0, 2.0, 6.0, 10.0],  # halves, rounded away from zero
    ]
    return torch.tensor(rows, dtype=dtype)


def bad_boxes(N: int, dtype=torch.float64):
    """Batch indices that are none, corners that are no numbers or far too large."""
    box, nan, inf = [2.0, 3.0, 11.0, 13.0], float("nan"), float("inf")
    rows = [[index, *box] for index in (-1, N, 0.5, nan, inf, 1e12)]
    rows += [[0, 2.0, nan, 11.0, 13.0], [0, 2.0, 3.0, inf, 13.0], [0, -inf, 3.0, inf, 13.0], [0, 2.0, 3.0, 1e30, 13.0]]
    return torch.tensor(rows, dtype=dtype)


def expected(function, *arguments):
    """What the reference gives, as tensors."""
    arguments = (a.numpy() if isinstance(a, torch.Tensor) else a for a in arguments)
    result = getattr(reference, function)(*arguments)
    return tuple(map(torch.from_numpy, result)) if isinstance(result, tuple) else torch.from_numpy(result)


def close(mine, theirs, atol, channels_last=None):
    torch.testing.assert_close(mine, theirs, rtol=0, atol=atol)
    if channels_last is not None:
        assert mine.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def gradients(function, *arguments):
    """A gradient of the features with atomics, the direct way and by way of channels_last, and without atomics."""
    with_atomics = []
    for outputs_a_cell in (math.inf, 0.0):
        with mock.patch.object(numba_cuda, "THROUGH_CHANNELS_LAST", outputs_a_cell):
            with_atomics.append(getattr(numba_cuda, function)(*arguments))
    torch.use_deterministic_algorithms(True)
    try:
        return *with_atomics, getattr(numba_cuda, function)(*arguments)
    finally:
        torch.use_deterministic_algorithms(False)


class Ops:
    """Both sides of every op, for one choice of arguments."""

    def __init__(self, features, boxes, bins=BINS, scale=SCALE, channels_last=False, atol=1e-10):
        last = torch.channels_last if channels_last else torch.contiguous_format
        self.features, self.boxes, self.bins, self.scale = features.contiguous(memory_format=last), boxes, bins, scale
        self.shape, self.last, self.atol = tuple(features.shape), channels_last, atol
        self.grad = random(len(boxes), features.shape[1], *bins, seed=1, dtype=boxes.dtype)

    def forward(self, function, *rule):
        """Outputs that equal the reference's, in the features' layout."""
        arguments = self.features, self.boxes, self.bins, self.scale, *rule
        mine, theirs = getattr(numba_cuda, function)(*arguments), expected(function, *arguments)
        mine, theirs = (mine, theirs) if isinstance(mine, tuple) else ((mine,), (theirs,))
        for a, b in zip(mine, theirs, strict=True):
            close(a, b, self.atol, self.last)
        assert theirs[0].abs().max() > 0.1
        return mine

    def backward(self, function, winner, *rule):
        arguments = self.grad, *winner, self.boxes, self.shape, *rule, self.last
        theirs = expected(function, *arguments)
        for mine in gradients(function, *arguments):
            close(mine, theirs, self.atol, self.last)
        assert theirs.abs().max() > 0.1

    def of_boxes(self, function, winner, *rule):
        arguments = self.grad, *winner, self.features, self.boxes, *rule
        theirs = expected(function, *arguments)
        close(getattr(numba_cuda, function)(*arguments), theirs, self.atol)
        assert theirs.abs().max() > 0.1

    def align(self, ratio, convention):
        rule = self.scale, ratio, convention
        self.forward("roi_align_forward", ratio, convention)
        _, winner = self.forward("roi_align_max_forward", ratio, convention)
        self.backward("roi_align_backward", (), *rule)
        self.backward("roi_align_max_backward", (winner,), *rule)
        self.of_boxes("roi_align_boxes_backward", (), *rule)
        self.of_boxes("roi_align_max_boxes_backward", (winner,), *rule)

    def pool(self):
        _, winner = self.forward("roi_pool_forward")
        self.backward("roi_pool_backward", (winner,))
