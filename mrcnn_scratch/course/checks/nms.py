"""Check of notebook 04's `my_nms`."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...boxes import box_iou
from ...nms import nms
from .iou import some_boxes
from .kit import Wrong, check, teacher

PLUS_ONE = "This is what IoUs of widths x2 - x1 + 1 would keep: with continuous coordinates a width is x2 - x1"


def told(mistakes: dict[str, Callable], fits: Callable[[object], bool]) -> str:
    """``. hint`` of the first known mistake whose result fits, or nothing."""
    return next((f". {hint}" for hint, value in mistakes.items() if fits(value())), "")


def _nms_like(
    boxes: Tensor, scores: Tensor, threshold: float,
    gone_suppress=False, at_threshold=False, ascending=False, in_order=False, last_of_ties=False, plus=0.0,
) -> list[int]:  # fmt: skip
    """NMS in Python, and the ways to get it wrong."""
    wide = boxes + boxes.new_tensor([0.0, 0.0, plus, plus])
    iou = box_iou(wide, wide)
    over = (iou >= threshold if at_threshold else iou > threshold).tolist()
    order = range(len(boxes)) if in_order else sorted(range(len(boxes)), key=lambda i: (float(scores[i]), -i))
    if last_of_ties:
        order = sorted(range(len(boxes)), key=lambda i: (float(scores[i]), i))
    order = list(order if ascending or in_order else reversed(order))
    kept = []
    for place, i in enumerate(order):
        if not any(over[i][j] for j in (order[:place] if gone_suppress else kept)):
            kept.append(i)
    return kept


def _nms_mistakes(boxes: Tensor, scores: Tensor, threshold: float) -> dict[str, Callable[[], list[int]]]:
    like = (boxes, scores, threshold)

    def places() -> list[int]:
        order = scores.argsort(descending=True, stable=True).tolist()
        return [order.index(i) for i in nms(*like).tolist()]

    return {
        "Boxes of equal score are to be taken in their order: sort with stable=True": lambda: _nms_like(
            *like, last_of_ties=True
        ),
        "Boxes that are gone still suppress others: compare with those that stay, not with all better ones": lambda: (
            _nms_like(*like, gone_suppress=True)
        ),
        "An IoU equal to the threshold does not suppress: it must be larger": lambda: _nms_like(
            *like, at_threshold=True
        ),
        "You begin with the worst score: best first": lambda: _nms_like(*like, ascending=True),
        "You take the boxes as they come: best score first": lambda: _nms_like(*like, in_order=True),
        "These are places in the sorted list: the caller wants indices into its own boxes": places,
        "The right boxes, in their own order: return them best first": lambda: sorted(nms(*like).tolist()),
        PLUS_ONE: lambda: _nms_like(*like, plus=1.0),
        "Nothing was suppressed": lambda: scores.argsort(descending=True, stable=True).tolist(),
    }


def _expect_kept(student, boxes: Tensor, scores: Tensor, threshold: float, say: str) -> None:
    """Raises Wrong unless the student keeps what the package keeps."""
    before = boxes.clone(), scores.clone()
    got, wanted = student(boxes, scores, threshold), nms(boxes, scores, threshold).tolist()
    if not isinstance(got, Tensor):
        raise Wrong(f"the result must be a tensor of indices; it is a {type(got).__name__}")
    if got.dtype == torch.bool or got.is_floating_point():
        raise Wrong(f"the result must be indices (int64), best first; it is {str(got.dtype).removeprefix('torch.')}")
    if got.dim() != 1:
        raise Wrong(f"the result must have one axis, an index for each box that stays; its shape is {tuple(got.shape)}")
    if not (torch.equal(boxes, before[0]) and torch.equal(scores, before[1])):
        raise Wrong("your function has changed the boxes or scores it was given; work on a copy")
    if got.tolist() != wanted:
        hint = told(_nms_mistakes(boxes, scores, threshold), lambda kept: kept == got.tolist())
        raise Wrong(f"{say}: keeps {_short(got.tolist())}, expected {_short(wanted)}{hint}")


def _short(indices: list[int]) -> str:
    return str(indices) if len(indices) <= 8 else f"{len(indices)} boxes, {str(indices[:8])[:-1]}, ...]"


THREE = ((0.0, 0.0, 4.0, 2.0), (1.0, 0.0, 5.0, 2.0), (2.0, 0.0, 6.0, 2.0))  # IoU 0.6, 0.6, and 1/3 of first and last


def three_boxes_in_a_row(student) -> None:
    boxes, scores = torch.tensor(THREE), torch.tensor([0.9, 0.8, 0.7])
    _expect_kept(student, boxes, scores, 0.5, "a, b, c of the example at 0.5")
    _expect_kept(student, boxes, scores, 0.65, "a, b, c of the example at 0.65, where all stay")
    _expect_kept(student, boxes, scores, 0.3, "a, b, c of the example at 0.3, where a alone stays")


def best_first_in_any_order(student) -> None:
    boxes, scores = torch.tensor(THREE + ((20.0, 5.0, 26.0, 7.0),)), torch.tensor([0.8, 0.9, 0.7, 0.95])
    _expect_kept(student, boxes, scores, 0.5, "the example with the best score in the middle, and a box far away")
    logits = torch.tensor([-2.0, -1.0, -3.0, -0.5])  # the RPN's scores are logits
    _expect_kept(student, boxes, logits, 0.5, "the same with scores below 0")


def exactly_at_the_threshold(student) -> None:
    boxes = torch.tensor([[0.0, 0.0, 4.0, 2.0], [0.0, 0.0, 4.0, 1.0]])
    _expect_kept(student, boxes, torch.tensor([0.9, 0.8]), 0.5, "two boxes whose IoU is 0.5, at 0.5")
    same = torch.tensor(THREE)[:1].repeat(3, 1)
    _expect_kept(student, same, torch.tensor([0.7, 0.9, 0.8]), 1.0, "the same box three times, at 1.0")


def equal_scores(student) -> None:
    boxes = torch.tensor(THREE)[:1].repeat(40, 1)
    _expect_kept(student, boxes, torch.full((40,), 0.5), 0.5, "the same box and score 40 times")
    boxes = torch.tensor(THREE)
    _expect_kept(student, boxes, torch.full((3,), 0.5), 0.5, "a, b, c of the example with equal scores")


def no_boxes_and_one(student) -> None:
    with teacher("An image without boxes is an ordinary image"):
        _expect_kept(student, torch.zeros(0, 4), torch.zeros(0), 0.5, "no boxes")
    _expect_kept(student, torch.tensor(THREE)[1:2], torch.tensor([0.1]), 0.5, "one box")


def small_boxes(student) -> None:
    g = torch.Generator().manual_seed(3)
    corner = torch.rand(60, 2, generator=g) * torch.tensor([12.0, 4.0])
    boxes = torch.cat([corner, corner + 1 + torch.rand(60, 2, generator=g) * 3], dim=1)
    _expect_kept(student, boxes, torch.rand(60, generator=g), 0.3, "60 boxes of 1 to 4 pixels at 0.3")


def once_more_changes_nothing(student) -> None:
    boxes, g = some_boxes(80, 4), torch.Generator().manual_seed(4)
    scores = torch.rand(80, generator=g)
    kept = student(boxes, scores, 0.3)
    if len(kept) and float(box_iou(boxes[kept], boxes[kept]).fill_diagonal_(0).max()) > 0.3:
        raise Wrong("two of the boxes that stay overlap by more than the threshold, 0.3")
    _expect_kept(student, boxes[kept], scores[kept], 0.3, "NMS of what NMS has kept must keep all of it")


def random_boxes_against_the_package(student) -> None:
    for seed in range(10, 18):
        g = torch.Generator().manual_seed(seed)
        boxes, scores = some_boxes(12 * seed, seed), torch.randn(12 * seed, generator=g)
        for threshold in (0.2, 0.5, 0.7):
            _expect_kept(student, boxes, scores, threshold, f"{len(boxes)} boxes at {threshold}")


@check(
    three_boxes_in_a_row, best_first_in_any_order, exactly_at_the_threshold, equal_scores, no_boxes_and_one,
    small_boxes, once_more_changes_nothing, random_boxes_against_the_package,
)  # fmt: skip
def check_nms(student) -> None:
    """Greedy NMS: (R, 4) xyxy, (R,), threshold -> (D,) int64, best first."""
