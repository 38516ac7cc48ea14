"""The CUDA kernels of the RoI ops in Numba's simulator, against the reference loops.

Run by test_cuda_simulator.py in a process of its own, since the simulator holds for a whole process:
NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/cudasim/simulated_*.py
"""

import pytest
import torch
from both_sides import CONVENTIONS, LAYOUTS, SCALE, Ops, ordinary_boxes, random
from strict import ORDERS, strict

from mrcnn_scratch._numba_cuda import SIMULATED
from mrcnn_scratch.roi_ops.numba_cuda import rows, threads


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
