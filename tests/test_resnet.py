"""The blocks of the ResNets, their normalisation layers, and the tiny ResNet; test_backbones.py has the named ones."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mrcnn_scratch.resnet import (
    BasicBlock,
    Bottleneck,
    ConvNorms,
    FrozenBatchNorm,
    TinyResNet,
    affine,
    conv_norm,
    init_convolutions,
    make_norm,
    make_stage,
)


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


# ---------------------------------------------------------------------------------------------- folding


def some_norm(kind, channels, generator, eps=1e-3):
    """A norm in double precision whose numbers are not those it starts with."""
    norm = make_norm(kind, channels, eps).double()
    with torch.no_grad():
        norm.weight.normal_(generator=generator)
        norm.bias.normal_(generator=generator)
        if kind != "group":
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.01, 2, generator=generator)
    return norm


CONVOLUTIONS = [
    dict(kernel_size=1), dict(kernel_size=3, stride=2, padding=1), dict(kernel_size=3, padding=1, groups=2),
    dict(kernel_size=3, dilation=2, padding=2), dict(kernel_size=1, bias=True),
]  # fmt: skip


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("kind", ["frozen", "batch", "group"])
@pytest.mark.parametrize("training", [False, True])
def test_a_convolution_and_its_norm_taken_together(generator, options, kind, training):
    conv = nn.Conv2d(4, 16, **{"bias": False} | options).double()
    norm, twin = some_norm(kind, 16, generator), make_norm(kind, 16, 1e-3).double()
    twin.load_state_dict(norm.state_dict())  # a norm in training moves its statistics: each way gets its own
    norm.train(training), twin.train(training)
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    mine, wanted = conv_norm(x, conv, norm), twin(conv(x))
    torch.testing.assert_close(mine, wanted, rtol=1e-11, atol=1e-11)
    for name, value in norm.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-12, atol=1e-12)

    towards = torch.randn(mine.shape, dtype=torch.float64, generator=generator)
    leaves = [x, *conv.parameters()]
    mine_grads = torch.autograd.grad((mine * towards).sum(), [*leaves, *norm.parameters()])
    grads = torch.autograd.grad((wanted * towards).sum(), [*leaves, *twin.parameters()])
    for a, b in zip(mine_grads, grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["frozen", "batch"])
def test_fixed_statistics_cost_one_convolution_and_no_pass_over_the_map(generator, monkeypatch, kind):
    conv, norm = nn.Conv2d(3, 4, 1, bias=False).double(), some_norm(kind, 4, generator).eval()
    monkeypatch.setattr(type(norm), "forward", lambda *_: pytest.fail("the map was normalised by itself"))
    x = torch.randn(1, 3, 2, 5, dtype=torch.float64, generator=generator)
    scale, shift = affine(norm)
    weight = conv.weight[:, :, 0, 0] * scale[:, None]
    wanted = torch.einsum("kc,nchw->nkhw", weight, x) + shift[None, :, None, None]
    torch.testing.assert_close(conv_norm(x, conv, norm), wanted, rtol=1e-12, atol=1e-12)


def test_layers_in_a_row_are_folded_alike(generator):
    layers = [
        nn.Conv2d(3, 8, 3, bias=False).double(), some_norm("frozen", 8, generator), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 4, 1, bias=False).double(), some_norm("batch", 4, generator).eval(),
    ]  # fmt: skip
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(ConvNorms(*layers)(x), nn.Sequential(*layers)(x), rtol=1e-11, atol=1e-11)


# ---------------------------------------------------------------------------------------------- the bottleneck


def bottleneck(generator, in_channels=8, channels=256, stride=2, **options):
    block = Bottleneck(in_channels, channels, stride, "frozen", 1e-3, **options).double()
    for module in block.modules():
        if isinstance(module, FrozenBatchNorm):
            module.load_state_dict(some_norm("frozen", len(module.weight), generator).state_dict())
    return block


def by_hand(block, x, first, second, groups):
    """The bottleneck of figure 5, right, written out, with its stride where one says."""
    y = F.relu(block.bn1(F.conv2d(x, block.conv1.weight, stride=first)))
    y = F.relu(block.bn2(F.conv2d(y, block.conv2.weight, stride=second, padding=1, groups=groups)))
    y = block.bn3(F.conv2d(y, block.conv3.weight))
    shortcut = block.downsample[1](F.conv2d(x, block.downsample[0].weight, stride=first * second))
    return F.relu(y + shortcut)


@pytest.mark.parametrize(("groups", "width"), [(1, 64), (4, 8)])
def test_where_a_bottlenecks_stride_is(generator, groups, width):
    options = dict(groups=groups, group_width=width)
    msra = bottleneck(generator, stride_in_1x1=True, **options)
    torchs = bottleneck(generator, **options)
    torchs.load_state_dict(msra.state_dict())  # the same weights: only the place differs
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64, generator=generator)
    close = partial(torch.testing.assert_close, rtol=1e-11, atol=1e-11)
    close(msra(x), by_hand(msra, x, 2, 1, groups))
    close(torchs(x), by_hand(torchs, x, 1, 2, groups))
    assert msra(x).shape == torchs(x).shape == (2, 256, 5, 4)
    assert float((msra(x) - torchs(x)).detach().abs().max()) > 0.1


def test_without_a_stride_its_place_does_not_matter(generator):
    msra, torchs = (bottleneck(generator, stride=1, stride_in_1x1=where) for where in (True, False))
    torchs.load_state_dict(msra.state_dict())
    x = torch.randn(1, 8, 5, 7, dtype=torch.float64, generator=generator)
    assert torch.equal(msra(x), torchs(x))


@pytest.mark.parametrize(
    ("channels", "groups", "group_width", "width"),
    [(256, 1, 64, 64), (2048, 1, 64, 512), (256, 32, 8, 256), (2048, 32, 8, 2048), (512, 64, 4, 512)],
)
def test_widths_of_the_3x3(channels, groups, group_width, width):
    with torch.device("meta"):
        conv = Bottleneck(64, channels, 1, "frozen", groups=groups, group_width=group_width).conv2
    assert (conv.in_channels, conv.out_channels, conv.groups) == (width, width, groups)


def test_a_block_leaves_its_input_alone(generator):
    # ReLU and the sum write in place: into maps of their own.
    for block in (BasicBlock(4, 4, 1, "batch"), Bottleneck(64, 64, 1, "frozen"), Bottleneck(64, 128, 2, "batch")):
        x = torch.randn(2, block.conv1.in_channels, 6, 5, generator=generator)
        before = x.clone()
        block(x)
        assert torch.equal(x, before)
