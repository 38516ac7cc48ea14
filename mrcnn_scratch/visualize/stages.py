"""One image taken through a model stage by stage, for the poster."""

from dataclasses import dataclass

import numpy as np
import torch

from ..boxes import box_iou, clip_boxes_to_image, decode_boxes
from ..model import MaskRCNN
from ..nms import batched_nms
from ..preprocess import batch_images
from ..rpn import propose
from .style import array

SHOWN_PROPOSALS, SHOWN_ROIS = 30, 4


@dataclass(frozen=True)
class Stages:
    """What one image becomes on its way through a model; boxes in the image's own pixels."""

    image: torch.Tensor  # (3, H, W) in [0, 1]
    strength: list[np.ndarray]  # of each level (H_l, W_l), the norm over channels
    strides: tuple[int, ...]  # pixels of the batch per cell
    anchors: list[torch.Tensor]  # of each level (H_l * W_l * A, 4)
    anchors_per_cell: int
    before: torch.Tensor  # (P, 4) the proposals with the best objectness, decoded and clipped, best first
    after: torch.Tensor  # (Q, 4) those that NMS leaves of them
    count: int  # proposals that go to the heads
    rois: torch.Tensor  # (R, 4) a few proposals that hardly overlap
    pooled: np.ndarray  # (R, s, s) the norm over channels of what the RoI layer makes of them
    classes: torch.Tensor  # (R, K) probabilities
    detection: dict  # in the image's own pixels
    masks: torch.Tensor | None  # (D, M, M) probabilities of the predicted class
    heatmaps: torch.Tensor | None  # (D, J, S, S) softmax over the cells


@torch.no_grad()
def run_stages(model: MaskRCNN, image: torch.Tensor) -> Stages:
    """Takes one image through a model stage by stage, in evaluation mode; the model's mode is put back.

    Args:
        model: any Mask R-CNN.
        image: (3, H, W) float in [0, 1].
    """
    config, was_training = model.config, model.training
    model.eval()
    try:
        image = image.to(next(model.parameters()).device)
        batch = batch_images([image], config.min_size, config.max_size, config.mean, config.std)
        features = model.extract(batch.images)
        anchors = model.anchors(features)
        logits, deltas = model.rpn(features)
        proposals = propose(logits, deltas, anchors, batch.sizes, config, training=False)
        detection = model.detect(features, proposals, batch)[0]
        before, scores, levels = _best_boxes(logits, deltas, anchors, batch.sizes[0])
        after = before[batched_nms(before, scores, levels, config.rpn_nms)]
        rois = _apart(proposals[0])
        pooled = model.pool(features, [rois], config.box_pool)
        classes = model.box_predictor(model.box_trunk(pooled))[0].float().softmax(dim=1)
        across, down = batch.ratios(0)
        ratios = image.new_tensor([across, down, across, down])
        boxes, labels = detection["boxes"] * ratios, detection["labels"]
        masks = heatmaps = None
        if config.masks:
            masks = model.mask_logits(features, [boxes])[torch.arange(len(labels)), labels].sigmoid()
        if config.keypoints:
            heat = model.keypoint_logits(features, [boxes])
            heatmaps = heat.flatten(2).softmax(dim=2).view_as(heat)
    finally:
        model.train(was_training)
    return Stages(
        image=image,
        strength=[array(level[0].norm(dim=0)) for level in features],
        strides=config.strides,
        anchors=[a / ratios for a in anchors],
        anchors_per_cell=len(config.anchor_sizes[0]) * len(config.aspect_ratios),
        before=before / ratios,
        after=after / ratios,
        count=len(proposals[0]),
        rois=rois / ratios,
        pooled=array(pooled.norm(dim=1)),
        classes=classes,
        detection=detection,
        masks=masks,
        heatmaps=heatmaps,
    )


def _best_boxes(logits, deltas, anchors, size) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The boxes with the best objectness of all levels, before any NMS, with their scores and levels."""
    scores, order = torch.cat(logits, dim=1)[0].sort(descending=True, stable=True)
    order = order[:SHOWN_PROPOSALS]
    boxes = decode_boxes(torch.cat(deltas, dim=1)[0, order], torch.cat(anchors)[order])
    levels = torch.cat([torch.full((len(a),), level) for level, a in enumerate(anchors)]).to(order.device)[order]
    return clip_boxes_to_image(boxes, size), scores[: len(order)], levels


def _apart(proposals: torch.Tensor) -> torch.Tensor:
    """The first few proposals of which no two have an IoU over 0.3."""
    chosen: list[int] = []
    for index, row in enumerate(box_iou(proposals, proposals)):
        if len(chosen) < SHOWN_ROIS and not (row[chosen] > 0.3).any():
            chosen.append(index)
    return proposals[chosen]
