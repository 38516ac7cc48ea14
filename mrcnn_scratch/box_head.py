"""Box head (Fast R-CNN, section 2; Mask R-CNN, figure 4): what each RoI shows, and a better box for it.

Module, targets, loss, inference, in that order.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .boxes import at_least_float32, clip_boxes_to_image, decode_boxes, encode_boxes, large_enough
from .config import ModelConfig
from .matching import match_boxes, sample
from .nms import batched_nms


class TwoLayerTrunk(nn.Module):
    """Two fully connected layers on the pooled RoI: the FPN head of figure 4, right.

    Args:
        channels: of the pooled features.
        size: bins a side.
        hidden: width of both layers.
    """

    def __init__(self, channels: int, size: int, hidden: int):
        super().__init__()
        self.out_channels = hidden
        self.fc6 = nn.Linear(channels * size * size, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """(R, C, size, size) -> (R, hidden)."""
        return torch.relu(self.fc7(torch.relu(self.fc6(pooled.flatten(1)))))


class BoxPredictor(nn.Module):
    """Class logits and, for every class, box deltas.

    Args:
        channels: of the trunk's output.
        num_classes: K, with the background.
    """

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.cls_score = nn.Linear(channels, num_classes)
        self.bbox_pred = nn.Linear(channels, 4 * num_classes)
        nn.init.normal_(self.cls_score.weight, std=0.01)  # Fast R-CNN, section 2.3
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(R, channels), or (R, channels, h, w) which is averaged over space -> (R, K), (R, K, 4)."""
        x = x.mean(dim=(2, 3)) if x.dim() == 4 else x
        logits = self.cls_score(x)
        return logits, self.bbox_pred(x).view(len(x), logits.shape[1], 4)


def sample_rois(
    proposals: torch.Tensor, target: dict, config: ModelConfig, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The RoIs of one image that the heads learn from (Fast R-CNN, section 2.3).

    Negatives are all RoIs below the positive IoU, as in Detectron; Fast R-CNN left those below 0.1 out.
    The ground-truth boxes join the proposals, so that there are positives before the RPN has learned;
    crowds do not.

    Args:
        proposals: (R, 4) xyxy, pixels.
        target: the image's ground truth: ``boxes``, ``labels``, optionally ``iscrowd``.
        generator: draws the sample.

    Returns:
        rois (S, 4), positives first; labels (S,) int64, 0 for negatives; matched (S,) int64 index of the
        ground truth, -1 for negatives.
    """
    truth = target["boxes"]
    if "iscrowd" in target:
        truth = truth[target["iscrowd"] == 0]
    rois = torch.cat([proposals, truth.to(proposals.dtype)])
    matches = match_boxes(rois, target, config.roi_positive_iou, config.roi_positive_iou)
    positive, negative = sample(matches, config.roi_batch, config.roi_positive_fraction, generator)
    matched = torch.cat([matches[positive], torch.full_like(negative, -1)])
    labels = torch.zeros_like(matched)
    labels[: len(positive)] = target["labels"][matches[positive]]
    return rois[torch.cat([positive, negative])], labels, matched


def box_targets(rois: torch.Tensor, target: dict, matched: torch.Tensor, weights: tuple[float, ...]) -> torch.Tensor:
    """Deltas from each positive RoI to its ground truth; zeros for negatives.

    Args:
        rois: (S, 4) xyxy, pixels.
        target: the image's ground truth.
        matched: (S,) index of the ground truth, -1 for negatives.
        weights: of the deltas.

    Returns:
        (S, 4).
    """
    deltas = rois.new_zeros(len(rois), 4)
    positive = torch.where(matched >= 0)[0]
    truth = target["boxes"][matched[positive]].to(rois.dtype)
    deltas[positive] = encode_boxes(truth, rois[positive], weights)
    return deltas


def box_loss(
    logits: torch.Tensor, deltas: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor, beta: float
) -> dict[str, torch.Tensor]:
    """Softmax loss over classes, smooth L1 on the deltas of the true class (Fast R-CNN, eq. 1).

    Both are divided by *all* sampled RoIs: twice as many RoIs with the same positives have half the box loss.

    Args:
        logits: (R, K).
        deltas: (R, K, 4) predicted.
        labels: (R,) int64, 0 is background.
        targets: (R, 4).
        beta: of smooth L1, 1.0 in Fast R-CNN, eq. 3.

    Returns:
        ``loss_classifier`` and ``loss_box``, scalars.
    """
    count = max(1, len(labels))
    classifier = F.cross_entropy(logits, labels, reduction="sum") / count
    positive = torch.where(labels > 0)[0]
    predicted = deltas[positive, labels[positive]]  # (P, 4)
    box = F.smooth_l1_loss(predicted, targets[positive].to(deltas.dtype), beta=beta, reduction="sum") / count
    return {"loss_classifier": classifier, "loss_box": box}


@torch.no_grad()
def detect_boxes(
    logits: torch.Tensor, deltas: torch.Tensor, rois: torch.Tensor, image_size: tuple[int, int], config: ModelConfig
) -> dict[str, torch.Tensor]:
    """One image's detections: every RoI votes for every class, NMS per class, the best over all classes.

    Args:
        logits: (R, K).
        deltas: (R, K, 4).
        rois: (R, 4) xyxy, pixels.
        image_size: height and width of the unpadded image, pixels.

    Returns:
        ``boxes (D, 4)``, ``labels (D,)`` from 1, ``scores (D,)``, best first.
    """
    scores = at_least_float32(logits).softmax(dim=1)  # (R, K)
    boxes = clip_boxes_to_image(decode_boxes(deltas, rois, config.box_weights), image_size)  # (R, K, 4)
    boxes, scores = boxes[:, 1:], scores[:, 1:]  # the background is no detection
    roi, column = torch.where(scores > config.score_threshold)
    boxes, scores, labels = boxes[roi, column], scores[roi, column], column + 1
    keep = large_enough(boxes, 1e-2)
    boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
    keep = batched_nms(boxes, scores, labels, config.box_nms)[: config.detections_per_image]
    return {"boxes": boxes[keep], "labels": labels[keep], "scores": scores[keep]}
