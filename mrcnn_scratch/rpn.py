"""Region Proposal Network (Faster R-CNN, section 3.1): which anchors hold an object, and where exactly.

Module, targets, loss, inference, in that order, as in the three heads.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .boxes import at_least_float32, clip_boxes_to_image, decode_boxes, encode_boxes, large_enough
from .config import ModelConfig
from .matching import IGNORED, match_boxes, sample
from .nms import batched_nms


class RPNHead(nn.Module):
    """A 3x3 convolution, then objectness and box deltas for each of A anchors at every cell.

    Args:
        channels: of the feature maps.
        anchors_per_cell: A.
    """

    def __init__(self, channels: int, anchors_per_cell: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, anchors_per_cell, 1)
        self.deltas = nn.Conv2d(channels, 4 * anchors_per_cell, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)  # Faster R-CNN, section 3.1.3
            nn.init.zeros_(layer.bias)

    def forward(self, features: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Feature maps (N, C, H_l, W_l) -> for each level logits (N, H_l*W_l*A) and deltas (N, H_l*W_l*A, 4)."""
        logits, deltas = [], []
        for feature in features:
            hidden = self.conv(feature).relu_()
            N, _, H, W = hidden.shape
            logits.append(self.objectness(hidden).permute(0, 2, 3, 1).reshape(N, -1))  # (N, A, H, W) -> (N, H*W*A)
            delta = self.deltas(hidden).view(N, -1, 4, H, W)  # (N, A, 4, H, W)
            deltas.append(delta.permute(0, 3, 4, 1, 2).reshape(N, -1, 4))  # -> (N, H*W*A, 4), anchors fastest
        return logits, deltas

    def at(
        self, features: list[torch.Tensor], samples: list[tuple[torch.Tensor, ...]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the head says of the sampled anchors alone, as :meth:`forward` does to rounding.

        The loss sees 256 of 65,000 anchors. Through these the backward pass costs a 3x3 patch for each of them, not
        one for every cell of the pyramid: for an image of 512 x 512 a tenth of a training step.

        Args:
            features: maps (N, C, H_l, W_l).
            samples: for each image what :func:`rpn_targets` returns, of which the indices of anchors are read.

        Returns:
            logits (S,) and deltas (S, 4), image by image, the positives of each first.
        """
        A, C = self.objectness.out_channels, self.conv.in_channels
        anchor = torch.cat([index for positive, negative, *_ in samples for index in (positive, negative)])  # (S,)
        counts = torch.tensor([len(positive) + len(negative) for positive, negative, *_ in samples])
        image = torch.arange(len(samples)).repeat_interleave(counts).to(anchor.device)  # (S,)
        patches, first = features[0].new_zeros(len(anchor), 9, C), 0
        for feature in features:
            H, W = feature.shape[-2:]
            own = ((anchor >= first) & (anchor < first + H * W * A)).nonzero()[:, 0]
            patches = patches.index_put((own,), _patches(feature, image[own], (anchor[own] - first) // A))
            first += H * W * A
        kernel = self.conv.weight.permute(2, 3, 1, 0).reshape(9 * C, -1)  # (9 * C, hidden)
        hidden = (patches.flatten(1) @ kernel + self.conv.bias).relu_()  # (S, hidden)
        kind = anchor % A  # which of its cell's anchors
        # An embedding is an index whose gradient is summed in one order, however many threads there are
        weight, bias = F.embedding(kind, self.objectness.weight.flatten(1)), self.objectness.bias.view(A, 1)
        logits = (hidden * weight).sum(1) + F.embedding(kind, bias)[:, 0]
        moves = F.embedding(kind, self.deltas.weight.view(A, -1)).unflatten(1, (4, -1)) @ hidden[:, :, None]
        return logits, moves[:, :, 0] + F.embedding(kind, self.deltas.bias.view(A, 4))


def _patches(feature: torch.Tensor, image: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) and (S,), (S,) -> (S, 9, C): the 3x3 cells around some, row by row, zeros beyond the border."""
    H, W = feature.shape[-2:]
    step = torch.arange(9, device=cell.device)
    y, x = (cell // W)[:, None] + step // 3 - 1, (cell % W)[:, None] + step % 3 - 1  # (S, 9)
    inside = (y >= 0) & (y < H) & (x >= 0) & (x < W)
    place = (image[:, None] * H + y.clamp(0, H - 1)) * W + x.clamp(0, W - 1)  # (S, 9)
    around = F.embedding(place, feature.permute(0, 2, 3, 1).flatten(0, 2))  # (S, 9, C), summed in one order, as above
    return around * inside[:, :, None]


def rpn_targets(
    anchors: torch.Tensor,
    target: dict,
    image_size: tuple[int, int],
    config: ModelConfig,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The anchors of one image that the loss sees, and what they should say.

    Args:
        anchors: (A, 4) of all levels, xyxy, pixels.
        target: the image's ground truth: ``boxes (G, 4)``, optionally ``iscrowd (G,)``.
        image_size: height and width of the unpadded image, pixels.
        generator: draws the sample.

    Returns:
        positive (P,) and negative (M,) int64 indices of anchors; deltas (P, 4) of the positives.
    """
    usable = torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)
    if config.rpn_straddle >= 0:  # before matching: an object at the border is claimed by its best anchor *inside*
        usable = _outside(anchors, image_size) <= config.rpn_straddle
    matches = torch.full_like(usable, IGNORED, dtype=torch.int64)  # (A,)
    matches[usable] = match_boxes(
        anchors[usable], target, config.rpn_positive_iou, config.rpn_negative_iou, allow_low_quality=True
    )
    positive, negative = sample(matches, config.rpn_batch, config.rpn_positive_fraction, generator)
    deltas = encode_boxes(target["boxes"][matches[positive]], anchors[positive])
    return positive, negative, deltas


def _outside(anchors: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """(A,) how far each anchor reaches over the image's border, pixels."""
    height, width = image_size
    limit = anchors.new_tensor([width, height])
    return torch.cat([-anchors[:, :2], anchors[:, 2:] - limit], dim=1).amax(dim=1)


def rpn_loss(
    logits: torch.Tensor,
    deltas: torch.Tensor,
    samples: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    beta: float,
) -> dict[str, torch.Tensor]:
    """Objectness and box loss, both averaged over all sampled anchors of the batch (Faster R-CNN, eq. 1).

    Args:
        logits: (S,) objectness of the sampled anchors, in the order of :meth:`RPNHead.at`.
        deltas: (S, 4) predicted.
        samples: for each image what :func:`rpn_targets` returns.
        beta: of smooth L1.

    Returns:
        ``loss_objectness`` and ``loss_rpn_box``, scalars; finite zeros in the graph where nothing was sampled.
    """
    label = torch.cat([index.new_full(index.shape, 1 - k) for pair in samples for k, index in enumerate(pair[:2])])
    wanted = torch.cat([target for *_, target in samples]).to(deltas.dtype)
    count = max(1, len(logits))
    objectness = F.binary_cross_entropy_with_logits(logits, label.to(logits.dtype), reduction="sum") / count
    box = F.smooth_l1_loss(deltas[label == 1], wanted, beta=beta, reduction="sum") / count
    return {"loss_objectness": objectness, "loss_rpn_box": box}


def propose(
    logits: list[torch.Tensor],
    deltas: list[torch.Tensor],
    anchors: list[torch.Tensor],
    image_sizes: list[tuple[int, int]],
    config: ModelConfig,
    training: bool,
) -> list[torch.Tensor]:
    """Proposals of each image: the best anchors of every level, decoded, clipped, without near-duplicates.

    See :func:`rank_proposals`, which gives their scores too.
    """
    return [boxes for boxes, _ in rank_proposals(logits, deltas, anchors, image_sizes, config, training)]


@torch.no_grad()
def rank_proposals(
    logits: list[torch.Tensor],
    deltas: list[torch.Tensor],
    anchors: list[torch.Tensor],
    image_sizes: list[tuple[int, int]],
    config: ModelConfig,
    training: bool,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """:func:`propose`, with the objectness of every proposal.

    Top-k and NMS run per level and per image; the final top-k is over one image's levels, never over the
    batch. So neighbours change an image's proposals only by the size that all are padded to: cells in the
    padding compete for the top-k, and convolutions at the image's edge read them.

    Args:
        logits: for each level (N, A_l).
        deltas: for each level (N, A_l, 4).
        anchors: for each level (A_l, 4) xyxy, pixels.
        image_sizes: N heights and widths of the unpadded images, pixels.
        training: which of the ``rpn_*_train`` and ``rpn_*_test`` counts hold.

    Returns:
        for each image boxes (R_i, 4) xyxy, pixels, and logits (R_i,), best first, detached: the RoI layers pass no
        gradient to their boxes.
    """
    before = config.rpn_pre_nms_train if training else config.rpn_pre_nms_test
    after = config.rpn_post_nms_train if training else config.rpn_post_nms_test
    proposals = []
    for image, size in enumerate(image_sizes):
        boxes, scores, levels = [], [], []
        for level, (logit, delta, anchor) in enumerate(zip(logits, deltas, anchors, strict=True)):
            score, top = at_least_float32(logit[image]).topk(min(before, logit.shape[1]))
            box = clip_boxes_to_image(decode_boxes(delta[image, top], anchor[top]), size)
            keep = large_enough(box, config.rpn_min_size)
            boxes.append(box[keep])
            scores.append(score[keep])
            levels.append(torch.full((len(keep),), level, device=box.device))
        box, score = torch.cat(boxes), torch.cat(scores)
        keep = batched_nms(box, score, torch.cat(levels), config.rpn_nms)[:after]
        proposals.append((box[keep], score[keep]))
    return proposals
