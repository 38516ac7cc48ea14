"""Which ground truth, if any, an anchor or RoI answers for, and which of them are shown to the loss."""

import torch

from .boxes import box_ioa, box_iou

BACKGROUND = -1  # IoU below the low threshold
IGNORED = -2  # between the thresholds, or inside a crowd: neither taught as object nor as background


def match(iou: torch.Tensor, high: float, low: float, allow_low_quality: bool = False) -> torch.Tensor:
    """Assigns to each candidate the ground truth it overlaps most (Faster R-CNN, section 3.1.2).

    With ``allow_low_quality`` a ground truth that no candidate reaches by ``high`` still claims all candidates
    tied at its own best IoU, unless that best is 0 (then *every* candidate is tied). A claimed candidate keeps
    its own best ground truth, which need not be the one that claimed it.

    Args:
        iou: (G, A) overlaps in [0, 1]; either may be 0.
        high: at least this IoU is a positive.
        low: below this IoU is background; between the two is ignored.
        allow_low_quality: for the RPN, not for the heads.

    Returns:
        (A,) int64: index of the ground truth, or ``BACKGROUND`` (-1), or ``IGNORED`` (-2).
    """
    G, A = iou.shape
    if G == 0 or A == 0:
        return torch.full((A,), BACKGROUND, dtype=torch.int64, device=iou.device)
    best_iou, best = iou.max(dim=0)  # (A,), (A,)
    matches = best.clone()
    matches[best_iou < high] = IGNORED
    matches[best_iou < low] = BACKGROUND
    if allow_low_quality:
        best_of_truth = iou.amax(dim=1, keepdim=True)  # (G, 1)
        claimed = ((iou == best_of_truth) & (best_of_truth > 0)).any(dim=0)  # (A,)
        matches = torch.where(claimed, best, matches)
    return matches


def match_boxes(
    boxes: torch.Tensor, target: dict, high: float, low: float, allow_low_quality: bool = False, crowd_ioa: float = 0.7
) -> torch.Tensor:
    """Matches boxes with one image's ground truth; crowds never become positives and hide what lies in them.

    Args:
        boxes: (A, 4) xyxy, pixels.
        target: the image's dictionary: ``boxes (G, 4)`` and optionally ``iscrowd (G,)``.
        high: IoU threshold of a positive.
        low: IoU threshold of the background.
        allow_low_quality: see :func:`match`.
        crowd_ioa: background boxes with more than this share in a crowd are ignored (Detectron's value).

    Returns:
        (A,) int64 index into ``target["boxes"]``, or -1 background, or -2 ignored.
    """
    truth = target["boxes"]
    crowd = target["iscrowd"].bool() if "iscrowd" in target else truth.new_zeros(len(truth), dtype=torch.bool)
    plain = torch.where(~crowd)[0]  # (G',) positions of the ordinary objects
    matches = match(box_iou(truth[plain], boxes), high, low, allow_low_quality)
    if crowd.any():
        hidden = (box_ioa(boxes, truth[crowd]) > crowd_ioa).any(dim=1)  # (A,)
        matches[(matches == BACKGROUND) & hidden] = IGNORED
        matched = matches >= 0  # none where the crowd is all there is
        matches[matched] = plain[matches[matched]]
    return matches


def sample(
    matches: torch.Tensor, size: int, positive_fraction: float, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws a mini-batch of candidates, mostly negatives (Faster R-CNN, section 3.1.3; Fast R-CNN, section 2.3).

    At most ``int(size * positive_fraction)`` positives; negatives fill the rest. No duplicates.

    Args:
        matches: (A,) int64 as :func:`match` gives them.
        size: candidates to draw.
        positive_fraction: largest share of positives, 0..1.
        generator: a CPU generator; None draws from torch's global one.

    Returns:
        (P,) and (M,) int64 indices of the drawn positives and negatives, each ascending.
    """
    positive = torch.where(matches >= 0)[0]
    negative = torch.where(matches == BACKGROUND)[0]
    positive = _draw(positive, int(size * positive_fraction), generator)
    negative = _draw(negative, size - len(positive), generator)
    return positive, negative


def _draw(indices: torch.Tensor, count: int, generator: torch.Generator | None) -> torch.Tensor:
    if len(indices) <= count:
        return indices
    chosen = torch.randperm(len(indices), generator=generator)[:count].to(indices.device)
    return indices[chosen].sort().values
