"""The backbone that a configuration names, and which of its stages train."""

from contextlib import contextmanager
from functools import partial
from zlib import crc32

import torch
from torch import nn

from .config import ModelConfig
from .resnet import RESNETS, BasicBlock, ResNet, Shape, TinyResNet, init_convolutions, make_stage


@contextmanager
def own_stream(seed: int, part: str):
    """Draws the weights of one part from a stream of its own, and leaves torch's global one as it was."""
    with torch.random.fork_rng(devices=[]):
        # of the CPU alone; its generator reads no more than 32 bits, so the seed goes into the hash
        torch.default_generator.manual_seed(crc32(f"{seed} {part}".encode()))
        yield


def make_backbone(config: ModelConfig) -> nn.Module:
    """A module whose ``forward`` gives C2, C3, ... and whose ``channels`` say how wide they are.

    C2..C5 for the necks "fpn" and "c5"; C2..C4 for "c4", where res5 belongs to the head (figure 4, left).
    """
    stages = 3 if config.neck == "c4" else 4
    if config.backbone == "tiny":
        widths, blocks = config.widths[:stages], config.blocks[:stages]
        return TinyResNet(widths, blocks, config.norm, config.norm_eps, config.groups)
    if config.backbone == "efficientnet_lite0":
        from .efficientnet_lite import EfficientNetLite

        return EfficientNetLite(config.norm, config.norm_eps)
    return ResNet(_shape(config), stages, config.norm, config.norm_eps)


def make_res5(config: ModelConfig, stride: int) -> tuple[nn.Module, int]:
    """The last stage as a head on RoIs of C4, and its channels."""
    shape = _shape(config)
    channels, blocks = shape.channels[2:], shape.blocks[3]
    res5 = make_stage(channels[0], channels[1], blocks, stride, config.norm, config.norm_eps, shape.block)
    init_convolutions(res5)
    return res5, channels[1]


def _shape(config: ModelConfig) -> Shape:
    if config.backbone == "tiny":
        return Shape(config.blocks, config.widths, partial(BasicBlock, groups=config.groups))
    shape = RESNETS[config.backbone]
    if shape.channels[-1] == 512:  # basic blocks have no 1x1 to put the stride in
        return shape
    return Shape(shape.blocks, shape.channels, partial(shape.block, stride_in_1x1=config.stride_in_1x1))


def freeze(backbone: nn.Module, freeze_at: int) -> None:
    """Stops the gradient to the stem (1), and to res2 (2), .. res5 (5): Detectron's FREEZE_AT, 2 in Mask R-CNN.

    Args:
        backbone: of :func:`make_backbone`.
        freeze_at: how many of the stem, res2, .. res5.
    """
    for part in [backbone.stem, *backbone.stages][:freeze_at]:
        part.requires_grad_(False)
