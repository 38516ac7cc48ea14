"""Feature Pyramid Network (Lin et al., arXiv:1612.03144, section 3): strong features at every stride."""

import torch
import torch.nn.functional as F
from torch import nn


class FPN(nn.Module):
    """A 1x1 lateral convolution per stage, a top-down sum, and a 3x3 convolution on each sum.

    Args:
        in_channels: channels of C2, C3, ... from fine to coarse.
        channels: channels of every output, 256 in the paper.
    """

    def __init__(self, in_channels: tuple[int, ...], channels: int):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        for layer in [*self.lateral, *self.output]:
            nn.init.kaiming_uniform_(layer.weight, a=1)  # variance 1 / fan-in: there is no ReLU after these
            nn.init.zeros_(layer.bias)

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """C2, C3, ... (N, C_l, H_l, W_l), fine to coarse -> P2, P3, ... (N, channels, H_l, W_l)."""
        top_down = None
        outputs = []
        for feature, lateral, output in zip(
            reversed(features), reversed(self.lateral), reversed(self.output), strict=True
        ):
            merged = lateral(feature)
            if top_down is not None:  # the map above may be half, rounded up: go to this map's exact size
                merged = merged + F.interpolate(top_down, size=merged.shape[-2:], mode="nearest")
            outputs.append(output(merged))
            top_down = merged
        return outputs[::-1]


def pyramid_top(features: list[torch.Tensor]) -> list[torch.Tensor]:
    """P2..P5 -> P2..P6: P6 is every second cell of P5, for the RPN's largest anchors alone (FPN, section 4.1)."""
    return [*features, features[-1][:, :, ::2, ::2]]
