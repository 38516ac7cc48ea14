"""The feature pyramid: lateral, top-down, output."""

import pytest
import torch
from torch import nn

from mrcnn_scratch.fpn import FPN


def identity_fpn(levels):
    """Lateral and output convolutions that change nothing: only the top-down sums remain."""
    fpn = FPN((1,) * levels, 1)
    for lateral, output in zip(fpn.lateral, fpn.output, strict=True):
        nn.init.ones_(lateral.weight)
        nn.init.dirac_(output.weight)
    return fpn


def test_top_down_by_hand():
    c3 = torch.tensor([[[[10.0, 20.0]]]])  # one row of two cells
    c2 = torch.arange(8.0).view(1, 1, 2, 4)
    p2, p3 = identity_fpn(2)([c2, c3])
    assert torch.equal(p3, c3)
    # each coarse cell is repeated 2 x 2 below and added
    assert p2[0, 0].tolist() == [[10, 11, 22, 23], [14, 15, 26, 27]]


def test_sums_run_down_all_levels_before_the_output_convolution():
    features = [torch.full((1, 1, 4, 8), 1.0), torch.full((1, 1, 2, 4), 10.0), torch.full((1, 1, 1, 2), 100.0)]
    fpn = identity_fpn(3)
    with torch.no_grad():
        fpn.output[1].weight.mul_(5)  # changes P3 alone: the sum passes on, not the output
    p2, p3, p4 = (p.detach() for p in fpn(features))
    assert (float(p2[0, 0, 1, 1]), float(p3[0, 0, 1, 1]), float(p4[0, 0, 0, 0])) == (111, 550, 100)


def test_odd_sizes_keep_each_maps_own_size():
    # 7 cells above 13 or 14: a fixed factor of two would give a map that does not fit
    features = [torch.randn(2, 3, 13, 21), torch.randn(2, 5, 7, 11), torch.randn(2, 7, 4, 6)]
    outputs = FPN((3, 5, 7), 4)(features)
    assert [tuple(o.shape) for o in outputs] == [(2, 4, 13, 21), (2, 4, 7, 11), (2, 4, 4, 6)]


def test_each_stage_meets_its_own_lateral():
    fpn = identity_fpn(2)
    with torch.no_grad():
        fpn.lateral[0].weight.fill_(3)
    p2, p3 = (p.detach() for p in fpn([torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1)]))
    assert float(p2[0, 0, 0, 0]) == 4 and float(p3) == 1


def test_every_parameter_learns():
    fpn = FPN((3, 5), 4)
    sum(o.square().sum() for o in fpn([torch.randn(1, 3, 4, 6), torch.randn(1, 5, 2, 3)])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in fpn.parameters())


def test_initial_weights_keep_the_variance():
    # variance 1 / fan-in: no ReLU follows
    fpn = FPN((100,), 200)
    assert float(fpn.lateral[0].weight.detach().std()) == pytest.approx(100**-0.5, rel=0.02)
    assert float(fpn.output[0].weight.detach().std()) == pytest.approx((9 * 200) ** -0.5, rel=0.02)
    assert not fpn.lateral[0].bias.any() and not fpn.output[0].bias.any()
