"""The CUDA kernels of the RoI ops in Numba's simulator, where something is wrong, missing or strided; see
simulated_roi_ops.py.
"""

import pytest
import torch
from both_sides import BINS, LAYOUTS, SCALE, Ops, bad_boxes, close, expected, gradients, ordinary_boxes, random
from strict import strict

from mrcnn_scratch.roi_ops import numba_cuda
from mrcnn_scratch.roi_ops.numba_cuda import launch


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
