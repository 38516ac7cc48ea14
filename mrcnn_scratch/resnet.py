"""ResNet (He et al., arXiv:1512.03385), ResNeXt (Xie et al., arXiv:1611.05431), and a tiny one that trains on a CPU.

A ResNet is a stem of stride 4 and four stages, res2 to res5, of strides 4, 8, 16 and 32. Mask R-CNN calls
their outputs C2 to C5.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with its statistics and affine parameters fixed: a scale and a shift per channel.

    Equal to ``nn.BatchNorm2d.eval()`` with the same buffers (Mask R-CNN fine-tunes on frozen statistics).
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale, shift = affine(self)
        return x * scale[:, None, None] + shift[:, None, None]


def affine(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift, (C,) each, that a batch normalisation with fixed statistics comes to."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def make_norm(kind: str, channels: int, eps: float = 1e-5) -> nn.Module:
    """The normalisation layer named by the configuration: "batch", "frozen" or "group" (8 channels a group)."""
    if kind == "batch":
        return nn.BatchNorm2d(channels, eps)
    return FrozenBatchNorm(channels, eps) if kind == "frozen" else nn.GroupNorm(max(1, channels // 8), channels, eps)


def conv_norm(x: torch.Tensor, conv: nn.Conv2d, norm: nn.Module) -> torch.Tensor:
    """``norm(conv(x))``, as a single convolution where the norm's statistics are fixed.

    A scale per output channel may as well multiply the weights, which are few, as the map, which is large: a pass
    over the map and its memory are saved. Gradients flow through the product to the weights.
    """
    fixed = isinstance(norm, FrozenBatchNorm) or (isinstance(norm, nn.BatchNorm2d) and not norm.training)
    if not fixed or conv.bias is not None:
        return norm(conv(x))
    scale, shift = affine(norm)
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


class ConvNorms(nn.Sequential):
    """Layers one after the other, each convolution taken together with the norm behind it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        conv = None
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                conv = layer
            elif conv is not None:
                x, conv = conv_norm(x, conv, layer), None
            else:
                x = layer(x)
        return x


def _shortcut(in_channels: int, channels: int, stride: int, norm: str, eps: float) -> nn.Module | None:
    """A 1x1 projection where the block changes the shape (ResNet, section 3.3, option B)."""
    if stride == 1 and in_channels == channels:
        return None
    return ConvNorms(nn.Conv2d(in_channels, channels, 1, stride, bias=False), make_norm(norm, channels, eps))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (ResNet, figure 5, left). The stride is in the first one.

    Groups, of the second one, are ours, after ResNeXt's: its paper groups bottlenecks alone.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, norm: str, eps: float = 1e-5, groups: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = make_norm(norm, channels, eps)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, padding=1, groups=groups, bias=False)
        self.bn2 = make_norm(norm, channels, eps)
        self.downsample = _shortcut(in_channels, channels, stride, norm, eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = conv_norm(x, self.conv1, self.bn1).relu_()
        return conv_norm(x, self.conv2, self.bn2).add_(shortcut).relu_()


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 beside a shortcut (ResNet, figure 5, right); with groups the block of ResNeXt (figure 3c).

    Args:
        channels: of the output, four times the 3x3's of a plain ResNet.
        stride: 2 halves the map.
        groups: of the 3x3, 64 in 64x4d.
        group_width: its channels per group in res2, 4 in 64x4d; 64 with one group is the plain ResNet.
        stride_in_1x1: where the stride is: in the first 1x1 (the paper and its weights) or in the 3x3 (torchvision).
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, norm: str, eps: float = 1e-5,
        groups: int = 1, group_width: int = 64, stride_in_1x1: bool = False,
    ):  # fmt: skip
        super().__init__()
        width = channels // 4 * group_width // 64 * groups
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, width, 1, first, bias=False)
        self.bn1 = make_norm(norm, width, eps)
        self.conv2 = nn.Conv2d(width, width, 3, second, padding=1, groups=groups, bias=False)
        self.bn2 = make_norm(norm, width, eps)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = make_norm(norm, channels, eps)
        self.downsample = _shortcut(in_channels, channels, stride, norm, eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = conv_norm(x, self.conv1, self.bn1).relu_()
        x = conv_norm(x, self.conv2, self.bn2).relu_()
        return conv_norm(x, self.conv3, self.bn3).add_(shortcut).relu_()


def make_stage(
    in_channels: int, channels: int, blocks: int, stride: int, norm: str, eps: float = 1e-5,
    block: Callable[..., nn.Module] = BasicBlock,
) -> nn.Sequential:  # fmt: skip
    """One of res2..res5: ``blocks`` residual blocks, the first of which has the stride."""
    layers = [block(in_channels, channels, stride, norm, eps)]
    layers += [block(channels, channels, 1, norm, eps) for _ in range(blocks - 1)]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Shape:
    """What tells one ResNet from another (ResNet, table 1; ResNeXt, table 1)."""

    blocks: tuple[int, ...]  # of res2..res5
    channels: tuple[int, ...] = (256, 512, 1024, 2048)  # of their outputs
    block: Callable[..., nn.Module] = Bottleneck


RESNETS = {
    "resnet18": Shape((2, 2, 2, 2), (64, 128, 256, 512), BasicBlock),
    "resnet50": Shape((3, 4, 6, 3)),
    "resnet101": Shape((3, 4, 23, 3)),
    "resnext101_32x8d": Shape((3, 4, 23, 3), block=partial(Bottleneck, groups=32, group_width=8)),
    "resnext101_64x4d": Shape((3, 4, 23, 3), block=partial(Bottleneck, groups=64, group_width=4)),
}


class ResNet(nn.Module):
    """A stem of stride 4, and the first so many of res2, res3, res4, res5.

    Args:
        shape: blocks, channels and kind of block.
        stages: how many stages to have: 4, or 3 where res5 is a head (C4).
        norm, eps: see :func:`make_norm`.
        stem: by default the paper's: a 7x7 convolution and a 3x3 max pooling.
    """

    def __init__(self, shape: Shape, stages: int = 4, norm: str = "frozen", eps: float = 1e-5, stem: nn.Module = None):
        super().__init__()
        self.stem = stem or ConvNorms(
            nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), make_norm(norm, 64, eps), nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, padding=1),
        )  # fmt: skip
        inputs = (64 if stem is None else shape.channels[0], *shape.channels)
        self.channels = shape.channels[:stages]
        self.stages = nn.ModuleList(
            make_stage(inputs[i], shape.channels[i], shape.blocks[i], 1 if i == 0 else 2, norm, eps, shape.block)
            for i in range(stages)
        )
        init_convolutions(self)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(N, 3, H, W) normalised images -> C2, C3, ...: (N, C_l, H / stride, W / stride), strides 4, 8, ..."""
        x = self.stem(x)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs


class TinyResNet(ResNet):
    """A ResNet of basic blocks whose stem is two 3x3 convolutions; as many stages as there are widths.

    Args:
        widths: channels of res2, res3, ...
        blocks: residual blocks of each stage.
        norm, eps: see :func:`make_norm`.
        groups: of every block, a divisor of every width.
    """

    def __init__(self, widths: tuple[int, ...], blocks: tuple[int, ...], norm: str, eps: float = 1e-5, groups: int = 1):
        width = widths[0]
        stem = ConvNorms(
            nn.Conv2d(3, width, 3, 2, padding=1, bias=False), make_norm(norm, width, eps), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, 2, padding=1, bias=False), make_norm(norm, width, eps), nn.ReLU(inplace=True),
        )  # fmt: skip
        block = partial(BasicBlock, groups=groups)
        super().__init__(Shape(tuple(blocks), tuple(widths), block), len(widths), norm, eps, stem)


def init_convolutions(module: nn.Module) -> None:
    """He initialisation (arXiv:1502.01852) of every convolution in a module; biases become 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
