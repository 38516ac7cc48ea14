"""The CUDA kernels of the RoI ops in Numba's simulator, against the reference loops.

Run by test_cuda_simulator.py in a process of its own, since the simulator holds for a whole process:
NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/cudasim/simulated_roi_ops.py
"""

import pytest
import torch
from strict import ORDERS, strict

from mrcnn_scratch._numba_cuda import SIMULATED
from mrcnn_scratch.roi_ops import numba_cuda, reference
from mrcnn_scratch.roi_ops.numba_cuda import launch, rows, threads

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
    """A gradient of the features with atomics, and without."""
    with_atomics = getattr(numba_cuda, function)(*arguments)
    torch.use_deterministic_algorithms(True)
    try:
        return with_atomics, getattr(numba_cuda, function)(*arguments)
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


def test_this_process_simulates():
    assert SIMULATED


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("ratio", [2, 0])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_align(convention, ratio, channels_last):
    with strict(ORDERS[(CONVENTIONS.index(convention) + channels_last) % 3]):
        Ops(random(2, 3, 5, 7), ordinary_boxes(), channels_last=channels_last).align(ratio, convention)


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("ratio", [1, 3, 4])
def test_other_sampling_ratios(ratio, channels_last):
    """1 and 4 have kernels of their own, where a kernel's ratio is frozen."""
    ops = Ops(random(2, 3, 5, 7), ordinary_boxes()[:7], channels_last=channels_last)
    with strict("shuffled"):
        ops.forward("roi_align_forward", ratio, "aligned")
        ops.forward("roi_align_max_forward", ratio, "aligned")
        ops.backward("roi_align_backward", (), SCALE, ratio, "aligned")


@pytest.mark.parametrize("channels_last", LAYOUTS)
def test_pool(channels_last):
    """All features negative: a bin without cells is 0, and larger than all others."""
    with strict("backward" if channels_last else "forward"):
        Ops(random(2, 3, 5, 7) - 5, ordinary_boxes(), channels_last=channels_last).pool()


@pytest.mark.parametrize("channels_last", LAYOUTS)
def test_float32(channels_last):
    """Away from the borders' edges, where a rounding decides."""
    ops = Ops(random(2, 3, 5, 7, dtype=torch.float32), ordinary_boxes(torch.float32)[:3], channels_last=channels_last)
    ops.atol = 2e-5
    with strict("forward"):
        ops.align(2, "aligned")
        ops.align(0, "legacy")
        ops.pool()


# ---- sizes at which threads, warps and tiles are full, and one more


@pytest.mark.parametrize("channels_last", LAYOUTS)
def test_many_channels(channels_last):
    """More than a warp's run, and than a block's: the last run is a ragged one."""
    C = threads.WARP * threads.RUN + 5
    assert C > 2 * threads.THREADS
    ops = Ops(
        random(1, C, 2, 3), torch.tensor([[0, 1.0, 2.0, 11.0, 7.0]]).double(), (1, 2), channels_last=channels_last
    )
    with strict("shuffled"):
        ops.align(1, "aligned")
        ops.pool()


@pytest.mark.parametrize("channels_last", LAYOUTS)
def test_many_rois_on_a_wide_map(channels_last):
    """More RoIs than a block looks at in one go, many on top of each other; cells in three tiles of a row."""
    W, R = 2 * rows.TILE + 3, threads.THREADS + 3
    x = torch.rand(R, 1, generator=torch.Generator().manual_seed(2)).double() * (W + 2) - 1
    y = torch.rand(R, 1, generator=torch.Generator().manual_seed(3)).double() * 3 - 1
    index = torch.arange(R)[:, None] % 2
    boxes = torch.cat([index.double(), x, y, x + 1.7, y + 1.2], dim=1)
    boxes[5] = torch.tensor([1, -3.0, 0.5, W + 4.0, 1.5])  # across all tiles
    ops = Ops(random(2, 1, 2, W), boxes, (1, 1), 1.0, channels_last=channels_last)
    with strict("backward" if channels_last else "forward"):  # one order for each of the two barriers
        _, winner = ops.forward("roi_align_max_forward", 2, "aligned")
        ops.backward("roi_align_backward", (), 1.0, 2, "aligned")
        ops.backward("roi_align_max_backward", (winner,), 1.0, 2, "aligned")
        ops.pool()


# ---- boxes that are no good, nothing to do, strides


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("op", ["roi_align", "roi_align_max", "roi_pool"])
def test_bad_boxes_are_nan_and_give_no_gradient(op, channels_last):
    """And they reach beyond no array: the simulator would say so."""
    good, bad = ordinary_boxes()[:3], bad_boxes(2)
    mixed = Ops(random(2, 3, 5, 7), torch.cat([bad, good]), channels_last=channels_last)
    alone = Ops(random(2, 3, 5, 7), good, channels_last=channels_last)
    alone.grad, rule = mixed.grad[len(bad) :], () if op == "roi_pool" else (2, "aligned")
    with strict("forward", warned=".*cast.*"):
        out = getattr(numba_cuda, f"{op}_forward")(mixed.features, mixed.boxes, BINS, SCALE, *rule)
        theirs = expected(f"{op}_forward", alone.features, good, BINS, SCALE, *rule)
        (out, *winner), (theirs, *winner_alone) = (x if isinstance(x, tuple) else (x,) for x in (out, theirs))
        assert out[: len(bad)].isnan().all() and torch.equal(out[len(bad) :].isnan(), torch.zeros_like(theirs).bool())
        close(out[len(bad) :], theirs, 1e-10)
        for w in winner:
            assert (w[: len(bad)] == -1).all()
            w[:6] = 0  # a batch index that is none stops the gradient even of a RoI that seems to have a winner
        rule = (SCALE, *rule) if rule else ()
        theirs = expected(f"{op}_backward", alone.grad, *winner_alone, good, alone.shape, *rule, channels_last)
        for mine in gradients(f"{op}_backward", mixed.grad, *winner, mixed.boxes, mixed.shape, *rule, channels_last):
            close(mine, theirs, 1e-10)
        if op != "roi_pool":
            by_boxes = getattr(numba_cuda, f"{op}_boxes_backward")(
                mixed.grad, *winner, mixed.features, mixed.boxes, *rule
            )
            assert (by_boxes[: len(bad)] == 0).all() and by_boxes[len(bad) :].abs().max() > 0


@pytest.mark.parametrize("N, C, R", [(0, 3, 2), (2, 0, 2), (2, 3, 0)])
def test_nothing_to_do_launches_nothing(N, C, R, monkeypatch):
    monkeypatch.setattr(launch, "_start", lambda *arguments: pytest.fail("a launch"))
    features, boxes, rule = torch.zeros(N, C, 5, 7), torch.zeros(R, 5), (SCALE, 2, "aligned")
    grad, winner = torch.ones(R, C, *BINS), torch.zeros(R, C, *BINS, dtype=torch.int32)
    outputs = [
        numba_cuda.roi_align_forward(features, boxes, BINS, *rule),
        *numba_cuda.roi_align_max_forward(features, boxes, BINS, *rule),
        *numba_cuda.roi_pool_forward(features, boxes, BINS, SCALE),
    ]
    assert all(out.shape == grad.shape for out in outputs)
    assert all(bool((out.isnan() if out.is_floating_point() else out == -1).all()) for out in outputs)
    shape = tuple(features.shape)
    for results in (
        gradients("roi_align_backward", grad, boxes, shape, *rule, False),
        gradients("roi_align_max_backward", grad, winner, boxes, shape, *rule, False),
        gradients("roi_pool_backward", grad, winner, boxes, shape, True),
    ):
        assert all(torch.equal(result, features) for result in results)
    assert torch.equal(numba_cuda.roi_align_boxes_backward(grad, features, boxes, *rule), torch.zeros(R, 5))
    assert torch.equal(numba_cuda.roi_align_max_boxes_backward(grad, winner, features, boxes, *rule), torch.zeros(R, 5))


@pytest.mark.parametrize("channels_last", LAYOUTS)
def test_any_strides(channels_last):
    """Features, boxes, gradient and winners that are slices, transposed, or expanded from one number."""
    ops = Ops(random(2, 3, 5, 7), ordinary_boxes()[:3], channels_last=channels_last)
    ops.features = random(2, 5, 3, 14).transpose(1, 2)[..., ::2]
    ops.boxes = torch.stack([ops.boxes, ops.boxes], dim=2)[..., 0]
    ops.grad, rule = torch.tensor(1.5, dtype=torch.float64).expand(3, 3, *BINS), (SCALE, 2, "aligned")
    _, winner = expected("roi_align_max_forward", ops.features, ops.boxes, BINS, *rule)
    assert not (ops.features.is_contiguous() or ops.boxes.is_contiguous() or ops.grad.is_contiguous())
    with strict("forward"):
        close(
            numba_cuda.roi_align_forward(ops.features, ops.boxes, BINS, *rule),
            expected("roi_align_forward", ops.features, ops.boxes, BINS, *rule),
            1e-10,
            channels_last=False,
        )
        ops.backward("roi_align_backward", (), *rule)
        ops.backward("roi_align_max_backward", (torch.stack([winner, winner], dim=4)[..., 0],), *rule)
        ops.of_boxes("roi_align_boxes_backward", (), *rule)


def test_one_channel_or_one_bin_fits_both_layouts():
    """Strides of dimensions of size 1 say nothing: such tensors count as both layouts, and come out plain."""
    rule = SCALE, 2, "aligned"
    with strict("forward"):
        for shape, bins in (((2, 1, 5, 7), BINS), ((2, 3, 1, 1), (1, 1))):
            boxes = torch.tensor([[0, 0.0, 0.0, 4.0, 3.0], [1, 0.0, 1.0, 3.0, 4.0]]).double()
            ops = Ops(random(*shape), boxes, bins, channels_last=True)
            close(
                numba_cuda.roi_align_forward(ops.features, ops.boxes, bins, *rule),
                expected("roi_align_forward", ops.features, ops.boxes, bins, *rule),
                1e-10,
                channels_last=False,
            )
            for last in LAYOUTS:
                ops.last = last
                ops.backward("roi_align_backward", (), *rule)


@pytest.mark.parametrize(
    "shape, bins, R",
    [((1, 1, 2**16, 2**15), (1, 1), 1), ((1, 2**21, 1, 1), (32, 32), 1), ((1, 2**14, 1, 1), (14, 14), 2**20)],
)
def test_more_than_32_bits_can_count_is_refused(shape, bins, R):
    job = launch.Job(shape, torch.zeros(1, 5).expand(R, 5), bins, SCALE, 2, "aligned", False)
    with pytest.raises(ValueError, match="more than a CUDA kernel can count"):
        launch.per_bin(job, "align", torch.zeros(1))
