"""The tiny ResNet and its normalisation layers."""

import pytest
import torch
from torch import nn

from mrcnn_scratch.resnet import BasicBlock, FrozenBatchNorm, TinyResNet, init_convolutions, make_norm, make_stage


def randomise(norm, generator):
    for name in ("weight", "bias", "running_mean"):
        getattr(norm, name).data.normal_(generator=generator)
    norm.running_var.data.uniform_(1e-6, 2, generator=generator)  # small enough for eps to matter


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_frozen_norm_equals_batch_norm_in_eval(generator, eps):
    # Frozen batch norm without eps (older code) gives other numbers, and NaN in half precision.
    frozen, batch = FrozenBatchNorm(7, eps), nn.BatchNorm2d(7, eps).eval()
    randomise(frozen, generator)
    batch.load_state_dict(frozen.state_dict(), strict=False)
    x = torch.randn(2, 7, 3, 5, generator=generator)
    torch.testing.assert_close(frozen(x), batch(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(frozen.train()(x), batch(x), rtol=1e-5, atol=1e-5)  # its statistics never move


def test_frozen_norm_has_nothing_to_learn_and_keeps_its_default_eps():
    norm = FrozenBatchNorm(3)
    assert norm.eps == 1e-5  # what torchvision's published weights were made with
    assert not list(norm.parameters())
    assert set(norm.state_dict()) == {"weight", "bias", "running_mean", "running_var"}
    zero_variance = FrozenBatchNorm(2)
    zero_variance.running_var.zero_()
    assert zero_variance(torch.ones(1, 2, 2, 2)).isfinite().all()


def test_norms_by_name():
    assert isinstance(make_norm("batch", 8), nn.BatchNorm2d)
    assert isinstance(make_norm("frozen", 8), FrozenBatchNorm)
    group = make_norm("group", 24)
    assert isinstance(group, nn.GroupNorm) and group.num_groups == 3
    assert make_norm("group", 4).num_groups == 1


@pytest.mark.parametrize("size", [(64, 96), (33, 70)])
def test_strides_and_widths(size):
    net = TinyResNet((8, 12, 16, 24), (1, 2, 1, 1), "batch")
    outputs = net(torch.zeros(2, 3, *size))
    assert [o.shape[1] for o in outputs] == [8, 12, 16, 24]
    for output, stride in zip(outputs, (4, 8, 16, 32), strict=True):
        assert output.shape == (2, output.shape[1], -(-size[0] // stride), -(-size[1] // stride))  # rounded up
    assert len(net.stages[1]) == 2


def test_block_by_hand():
    # With both 3x3 convolutions at 0 a block is relu(shortcut).
    block = BasicBlock(2, 2, 1, "frozen")
    for conv in (block.conv1, block.conv2):
        nn.init.zeros_(conv.weight)
    x = torch.tensor([[[[1.0, -2.0]], [[-3.0, 4.0]]]])
    assert torch.equal(block(x), x.clamp(min=0))
    assert block.downsample is None  # nothing to project
    assert BasicBlock(2, 4, 1, "frozen").downsample is not None
    strided = BasicBlock(2, 2, 2, "frozen")
    assert strided.conv1.stride == (2, 2) and strided.conv2.stride == (1, 1)
    assert strided(torch.zeros(1, 2, 5, 7)).shape == (1, 2, 3, 4)


def test_a_stage_has_its_stride_once():
    stage = make_stage(4, 8, 3, 2, "batch")
    assert [block.conv1.stride[0] for block in stage] == [2, 1, 1]
    assert stage(torch.zeros(1, 4, 8, 12)).shape == (1, 8, 4, 6)


def test_he_initialisation():
    # variance 2 / (channels out * 9), biases 0
    convolution = nn.Conv2d(64, 128, 3)
    nn.init.ones_(convolution.bias)
    init_convolutions(convolution)
    assert float(convolution.weight.detach().std()) == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.03)
    assert not convolution.bias.any()


def test_activations_neither_die_nor_explode_through_the_network(generator):
    net = TinyResNet((16, 16, 16, 16), (2, 2, 2, 2), "batch")
    for output in net(torch.randn(2, 3, 64, 64, generator=generator)):
        assert 0.2 < float(output.detach().std()) < 5
