"""Mask head (Mask R-CNN, section 3): a small binary mask for every class, of which one is used.

Module, targets, loss, inference, in that order.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .boxes import at_least_float32
from .config import ModelConfig
from .pasting import paste_masks as paste_masks
from .resnet import init_convolutions
from .roi_ops import roi_align


class MaskHead(nn.Module):
    """3x3 convolutions, a deconvolution that doubles the side, a 1x1 per class (figure 4).

    Args:
        in_channels: of the pooled features.
        channels: of the hidden layers.
        convs: how many 3x3 convolutions: 4 with FPN, 0 after res5 (C4).
        num_classes: K, with the background, whose mask the sigmoid never uses; 1 for a class-agnostic mask.
    """

    def __init__(self, in_channels: int, channels: int, convs: int, num_classes: int):
        super().__init__()
        widths = [in_channels] + [channels] * convs
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:], strict=False))
        self.deconv = nn.ConvTranspose2d(widths[-1], channels, 2, 2)
        self.logits = nn.Conv2d(channels, num_classes, 1)
        init_convolutions(self)
        nn.init.kaiming_normal_(self.logits.weight, nonlinearity="linear")  # by fan-in: K is too few outputs to go by
        if num_classes == 1:
            nn.init.normal_(self.logits.weight, std=0.001)  # Detectron: a fan-in fill diverges with one class

    def forward(self, pooled: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """(R, C, m, m) -> logits (R, K, 2m, 2m); with labels (R,) int64 those of each RoI's own class, (R, 1, 2m, 2m).

        The loss and the result read one class of K: to compute the other 90 of COCO would be for nothing.
        """
        for conv in self.convs:
            pooled = conv(pooled).relu_()  # in place: a fresh map of memory would cost more than the ReLU
        x = self.deconv(pooled).relu_()
        if labels is None or self.logits.out_channels == 1:
            return self.logits(x)
        R, C, M, _ = x.shape
        cells = x.permute(0, 2, 3, 1).reshape(R, M * M, C)  # a view where x is channels_last
        # by embedding, whose gradient is summed in one order, however many threads there are
        own = cells @ F.embedding(labels, self.logits.weight.flatten(1))[:, :, None]  # (R, M*M, 1)
        return own.view(R, 1, M, M) + F.embedding(labels, self.logits.bias[:, None]).view(R, 1, 1, 1)


class MLPMaskHead(nn.Module):
    """Fully connected layers, for which a mask is a vector without layout: the loser of Table 2e.

    Args:
        in_channels: of the pooled features.
        size: bins a side of the pooled features; the mask has twice as many.
        hidden: width of the hidden layers, 1024 in Table 2e.
        layers: how many of them, 2 or 3 in Table 2e.
        num_classes: K, with the background.
    """

    def __init__(self, in_channels: int, size: int, hidden: int, layers: int, num_classes: int):
        super().__init__()
        self.side = 2 * size
        widths = [in_channels * size * size] + [hidden] * layers
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.logits = nn.Linear(hidden, num_classes * self.side**2)
        for layer in [*self.layers, self.logits]:
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """(R, C, m, m) -> logits (R, K, 2m, 2m)."""
        x = pooled.flatten(1)
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.logits(x).unflatten(1, (-1, self.side, self.side))  # (R, K * 2m * 2m) -> (R, K, 2m, 2m)


def make_mask_head(config: ModelConfig, channels: int) -> nn.Module:
    """The mask head that a configuration names, on features of so many channels (figure 4; Tables 2b and 2e)."""
    outputs = config.num_classes if config.mask_classes == "specific" else 1
    if config.mask_head == "mlp":
        return MLPMaskHead(channels, config.mask_pool, config.mask_hidden, config.mask_layers, outputs)
    convs = 0 if config.neck == "c4" else config.mask_convs  # C4's mask branch stands on res5 (figure 4, left)
    return MaskHead(channels, config.mask_channels, convs, outputs)


def mask_targets(
    masks: torch.Tensor,
    matched: torch.Tensor,
    rois: torch.Tensor,
    size: int,
    aligned: bool = True,
    binary: bool = False,
) -> torch.Tensor:
    """What the mask branch should paint in each RoI: the RoI's crop of its ground-truth mask.

    The crop is RoIAlign of the mask, so it keeps sub-pixel edges as values between 0 and 1. It is cut out by the
    RoI, not by the object's box: "the intersection between an RoI and its associated ground-truth mask".

    Args:
        masks: (G, H, W) 0/1, one image's.
        matched: (P,) int64 index of each RoI's mask.
        rois: (P, 4) xyxy, pixels.
        size: of the target, cells a side.
        aligned: False shifts by half a pixel, as torchvision does.
        binary: cut at 0.5, as Detectron2 does.

    Returns:
        (P, size, size) in [0, 1], the dtype of ``rois``.
    """
    boxes = torch.cat([matched.to(rois.dtype)[:, None], rois], dim=1)  # (P, 5): the mask takes the image's place
    targets = roi_align(masks[:, None].to(rois.dtype), boxes, size, 1.0, aligned=aligned, sampling_ratio=0)[:, 0]
    return (targets >= 0.5).to(rois.dtype) if binary else targets


def mask_loss(
    logits: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor, kind: str = "sigmoid"
) -> torch.Tensor:
    """Mean binary cross-entropy on the mask of the true class alone: masks do not compete (section 3, L_mask).

    With "softmax" they do: every pixel of the RoI is of one class or background, and the loss is multinomial, as in
    an FCN (Table 2b).

    Args:
        logits: (P, K, M, M) of the positive RoIs; K = 1 is one mask for all classes.
        labels: (P,) int64, from 1.
        targets: (P, M, M) in [0, 1]; "softmax" cuts them at 0.5.
        kind: "sigmoid" or "softmax".

    Returns:
        scalar; a finite zero in the graph when P is 0.
    """
    if len(logits) == 0:
        return logits.sum() * 0
    if kind == "softmax":
        classes = torch.where(targets >= 0.5, labels[:, None, None], 0)  # (P, M, M)
        return F.cross_entropy(logits, classes)
    own = _of_class(logits, labels)  # (P, M, M)
    return F.binary_cross_entropy_with_logits(own, targets.to(own.dtype))


def _of_class(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(P, K, M, M) and (P,) -> (P, M, M): each RoI's own mask, or the only one where K is 1."""
    channel = labels if x.shape[1] > 1 else torch.zeros_like(labels)
    return x[torch.arange(len(labels), device=labels.device), channel]


def select_masks(logits: torch.Tensor, labels: torch.Tensor, kind: str = "sigmoid") -> torch.Tensor:
    """Probabilities of the predicted class's mask.

    Args:
        logits: (D, K, M, M); K = 1 is one mask for all classes.
        labels: (D,) int64, predicted.
        kind: as for :func:`mask_loss`.

    Returns:
        (D, M, M) in [0, 1].
    """
    if kind == "softmax":
        return _of_class(at_least_float32(logits).softmax(dim=1), labels)
    return at_least_float32(_of_class(logits, labels)).sigmoid()
