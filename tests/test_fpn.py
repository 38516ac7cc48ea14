"""The feature pyramid: lateral, top-down, output."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mrcnn_scratch import build_model
from mrcnn_scratch.fpn import FPN, pyramid_top


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


@pytest.mark.parametrize("size", [(7, 10), (6, 9), (1, 1)])
def test_p6_is_every_second_cell_of_p5(generator, size):
    pyramid = [torch.randn(2, 3, 4, 5, generator=generator), torch.randn(2, 3, *size, generator=generator)]
    topped = pyramid_top(pyramid)
    assert len(topped) == 3 and all(a is b for a, b in zip(topped, pyramid, strict=False))
    assert torch.equal(topped[-1], pyramid[-1][:, :, ::2, ::2])
    assert torch.equal(topped[-1], F.max_pool2d(pyramid[-1], 1, 2))  # how Detectron and torchvision write it


def test_p6_by_hand_and_its_gradient():
    p5 = torch.arange(12.0).view(1, 1, 3, 4).requires_grad_()
    p6 = pyramid_top([p5])[-1]
    assert p6[0, 0].tolist() == [[0, 2], [8, 10]]
    p6.sum().backward()
    assert p5.grad[0, 0].tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0]]


@pytest.mark.parametrize("size", [(75, 101), (64, 97), (33, 160)])
@pytest.mark.parametrize("top", [False, True])
def test_the_levels_of_an_odd_image(size, top):
    # 75 x 101 -> P2 19 x 26, P3 10 x 13, P4 5 x 7, P5 3 x 4, P6 2 x 2
    sizes = ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,))[: 5 if top else 4]
    model = build_model("tiny-fpn", 3, pyramid_top=top, anchor_sizes=sizes, widths=(8, 8, 8, 8), fpn_channels=12).eval()
    with torch.no_grad():
        features = model.extract(torch.rand(1, 3, *size))
    assert len(features) == len(model.config.strides) == (5 if top else 4)
    for feature, stride in zip(features, model.config.strides, strict=True):
        assert feature.shape == (1, 12, -(-size[0] // stride), -(-size[1] // stride))  # rounded up
    if top:
        assert torch.equal(features[4], features[3][:, :, ::2, ::2])


def test_rois_are_never_pooled_from_p6(generator):
    # A RoI of 1024 pixels would go to level 6 by eq. 1: it pools from P5, and the RPN alone reads P6.
    sizes = ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,))
    model = build_model("tiny-fpn", 3, pyramid_top=True, anchor_sizes=sizes).eval()
    features = [torch.randn(1, 2, 1024 // s, 1024 // s, generator=generator) for s in model.config.strides]
    roi = [torch.tensor([[0.0, 0, 1024, 1024]])]
    with_top = model.pool(features, roi, 7)
    assert torch.equal(with_top, model.pool(features[:4], roi, 7))
    assert torch.equal(with_top, model.pool([*(f * 0 for f in features[:3]), features[3]], roi, 7)) and with_top.any()
