"""ResNet (He et al., arXiv:1512.03385): here the tiny one, which trains from scratch on a CPU.

A ResNet is a stem of stride 4 and four stages, res2 to res5, of strides 4, 8, 16 and 32. Mask R-CNN calls
their outputs C2 to C5.
"""

import torch
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
        scale = self.weight * (self.running_var + self.eps).rsqrt()  # (C,)
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


def make_norm(kind: str, channels: int) -> nn.Module:
    """The normalisation layer named by the configuration: "batch", "frozen" or "group" (8 channels a group)."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return FrozenBatchNorm(channels) if kind == "frozen" else nn.GroupNorm(max(1, channels // 8), channels)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (ResNet, figure 5, left). The stride is in the first one."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: str):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = make_norm(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, padding=1, bias=False)
        self.bn2 = make_norm(norm, channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), make_norm(norm, channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + shortcut)


def make_stage(in_channels: int, channels: int, blocks: int, stride: int, norm: str) -> nn.Sequential:
    """One of res2..res5: ``blocks`` residual blocks, the first of which has the stride."""
    layers = [BasicBlock(in_channels, channels, stride, norm)]
    layers += [BasicBlock(channels, channels, 1, norm) for _ in range(blocks - 1)]
    return nn.Sequential(*layers)


class TinyResNet(nn.Module):
    """A stem of two 3x3 convolutions and as many stages as there are widths.

    Args:
        widths: channels of res2, res3, ...
        blocks: residual blocks of each stage.
        norm: see :func:`make_norm`.
    """

    def __init__(self, widths: tuple[int, ...], blocks: tuple[int, ...], norm: str):
        super().__init__()
        stem = widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 3, 2, padding=1, bias=False), make_norm(norm, stem), nn.ReLU(inplace=True),
            nn.Conv2d(stem, stem, 3, 2, padding=1, bias=False), make_norm(norm, stem), nn.ReLU(inplace=True),
        )  # fmt: skip
        stages, in_channels = [], stem
        for index, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            stages.append(make_stage(in_channels, width, count, 1 if index == 0 else 2, norm))
            in_channels = width
        self.stages = nn.ModuleList(stages)
        init_convolutions(self)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(N, 3, H, W) normalised images -> C2, C3, ...: (N, width, H / stride, W / stride), strides 4, 8, ..."""
        x = self.stem(x)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs


def init_convolutions(module: nn.Module) -> None:
    """He initialisation (arXiv:1502.01852) of every convolution in a module; biases become 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
