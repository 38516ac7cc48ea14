"""Notebook 04's checks: the package's functions pass, the mistakes of real detectors fail, each with its hint."""

import pytest
import torch
from planted import fails_with, passes, waits
from solved import solutions

from mrcnn_scratch import ModelConfig, batched_nms, box_iou, clip_boxes_to_image, decode_boxes, nms
from mrcnn_scratch.boxes import large_enough
from mrcnn_scratch.course.checks import check_nms, check_propose
from mrcnn_scratch.rpn import propose, rank_proposals


def limits(before, after, nms_iou=0.7, min_size=0.0):
    return ModelConfig(rpn_pre_nms_test=before, rpn_post_nms_test=after, rpn_nms=nms_iou, rpn_min_size=min_size)


def package_propose(logits, deltas, anchors, sizes, *numbers, **named):
    return propose(logits, deltas, anchors, sizes, limits(*numbers, **named), training=False)


@pytest.mark.parametrize("check, function", [(check_nms, nms), (check_propose, package_propose)])
def test_the_packages_function_passes_and_an_unwritten_one_waits(check, function, capsys):
    passes(check, function, capsys)
    waits(check, capsys)


def greedy(boxes, scores, threshold, by_all=False, equal=False, descending=True, stable=True, plus=0.0):
    """NMS by hand, and by the wrong hand."""
    wide = boxes + torch.tensor([0, 0, plus, plus])
    iou, kept, seen = box_iou(wide, wide), [], []
    order = scores.argsort(descending=descending, stable=True)
    for i in (order if stable else scores.flip(0).argsort(descending=True, stable=True).sub(len(scores) - 1).neg()):
        rivals = iou[i, seen if by_all else kept]
        if not (rivals >= threshold if equal else rivals > threshold).any():
            kept.append(int(i))
        seen.append(int(i))
    return torch.tensor(kept, dtype=torch.int64)


def sorted_places(boxes, scores, threshold):
    order = scores.argsort(descending=True, stable=True)
    return nms(boxes[order], scores[order], threshold)


def in_place(boxes, scores, threshold):
    kept = nms(boxes, scores, threshold)
    scores[kept] = -1
    return kept


WRONG_NMS = {
    "suppressed ones suppress": (lambda b, s, t: greedy(b, s, t, by_all=True), "compare with those that stay"),
    "at the threshold, too": (lambda b, s, t: greedy(b, s, t, equal=True), "it must be larger"),
    "worst first": (lambda b, s, t: greedy(b, s, t, descending=False), "best first"),
    "unsorted": (lambda b, s, t: greedy(b, -torch.arange(len(s)).float(), t), "You take the boxes as they come"),
    "ties from the end (TRAPS 29)": (lambda b, s, t: greedy(b, s, t, stable=False), "sort with stable=True"),
    "places after sorting": (sorted_places, "indices into its own boxes"),
    "in the order of the input": (lambda b, s, t: nms(b, s, t).sort().values, "return them best first"),
    "legacy + 1 (TRAPS 18)": (lambda b, s, t: greedy(b, s, t, plus=1.0), "a width is x2 - x1"),
    "a mask": (lambda b, s, t: torch.zeros(len(b), dtype=torch.bool).index_fill(0, nms(b, s, t), True), "it is bool"),
    "a list": (lambda b, s, t: nms(b, s, t).tolist(), "it is a list"),
    "floats": (lambda b, s, t: nms(b, s, t).float(), "must be indices"),
    "the boxes": (lambda b, s, t: b[nms(b, s, t)].long(), "one axis"),
    "scores overwritten": (in_place, "has changed the boxes or scores"),
    "stops without boxes": (lambda b, s, t: nms(b, s - s.max(), t), "no boxes and one: <lambda> stopped"),
    "nothing": (lambda b, s, t: s.argsort(descending=True, stable=True), "Nothing was suppressed"),
}


@pytest.mark.parametrize("wrong, hint", WRONG_NMS.values(), ids=list(WRONG_NMS))
def test_a_wrong_nms_fails_with_its_hint(wrong, hint):
    fails_with(check_nms, wrong, hint)


def hand_made(
    logits, deltas, anchors, sizes, before, after, nms_iou=0.7, min_size=0.0,
    clip=lambda size, sizes: size, all_maps=False, groups=True, order="after", cut_maps=False, enough=large_enough,
):  # fmt: skip
    """The exercise, with a hole for each mistake."""
    if all_maps:
        logits, deltas, anchors = [torch.cat(logits, 1)], [torch.cat(deltas, 1)], [torch.cat(anchors)]
    proposals = []
    for image, size in enumerate(sizes):
        boxes, scores, levels = [], [], []
        for level, (logit, delta, anchor) in enumerate(zip(logits, deltas, anchors, strict=True)):
            score, top = logit[image].topk(min(before, len(anchor)))
            box = decode_boxes(delta[image, top], anchor[top])
            if order == "before":
                keep = enough(box, min_size)
                box, score = box[keep], score[keep]
            box = clip_boxes_to_image(box, clip(size, sizes)) if clip else box
            if order == "after":
                keep = enough(box, min_size)
                box, score = box[keep], score[keep]
            if cut_maps:
                keep = nms(box, score, nms_iou)[:after]
                box, score = box[keep], score[keep]
            boxes.append(box)
            scores.append(score)
            levels.append(torch.full((len(box),), level if groups else 0))
        box = torch.cat(boxes)
        keep = batched_nms(box, torch.cat(scores), torch.cat(levels), nms_iou)
        proposals.append(box[keep if cut_maps else keep[:after]])
    return proposals


def planted(**how):
    return lambda *arguments, **options: hand_made(*arguments, **options, **how)


def padded(size, sizes):
    return tuple(-(-max(s[axis] for s in sizes) // 32) * 32 for axis in (0, 1))


def over_the_batch(times):
    """Detectron's last limit (TRAPS 28), once for the batch or as many times as it has images."""

    def wrong(logits, deltas, anchors, sizes, before, after, nms_iou=0.7, min_size=0.0):
        config = limits(before, 10**6, nms_iou, min_size)
        ranked = rank_proposals(logits, deltas, anchors, sizes, config, training=False)
        limit = after * (len(sizes) if times else 1)
        last = torch.cat([score for _, score in ranked]).sort(descending=True).values[:limit][-1:]
        return [box[score >= last] for box, score in ranked]

    return wrong


def unmoved(logits, deltas, *rest, **options):
    return package_propose(logits, [d * 0 for d in deltas], *rest, **options)


def nms_first(logits, deltas, anchors, sizes, before, after, nms_iou=0.7, min_size=0.0):
    found = []
    for image, size in enumerate(sizes):
        boxes, scores, levels = [], [], []
        for level, (logit, delta, anchor) in enumerate(zip(logits, deltas, anchors, strict=True)):
            box = clip_boxes_to_image(decode_boxes(delta[image], anchor), size)
            some = large_enough(box, min_size)
            some = some[nms(box[some], logit[image, some], nms_iou)[:before]]
            boxes.append(box[some])
            scores.append(logit[image, some])
            levels.append(torch.full((len(some),), level))
        order = torch.cat(scores).argsort(descending=True, stable=True)[:after]
        found.append(torch.cat(boxes)[order])
    return found


def map_by_map(logits, deltas, anchors, sizes, before, after, nms_iou=0.7, min_size=0.0):
    """Another right way: NMS of each map, then one sort."""
    found = []
    for image, size in enumerate(sizes):
        parts = []
        for logit, delta, anchor in zip(logits, deltas, anchors, strict=True):
            top = logit[image].argsort(descending=True)[:before]
            box = clip_boxes_to_image(decode_boxes(delta[image][top], anchor[top]), size)
            some = ((box[:, 2] - box[:, 0]) > min_size) & ((box[:, 3] - box[:, 1]) > min_size)
            box, score = box[some], logit[image][top][some]
            keep = nms(box, score, nms_iou)
            parts.append((box[keep], score[keep]))
        order = torch.cat([score for _, score in parts]).argsort(descending=True)[:after]
        found.append(torch.cat([box for box, _ in parts])[order])
    return found


def by_removal(boxes, scores, threshold):
    """Another right way: a shrinking list."""
    left, kept = scores.argsort(descending=True, stable=True), []
    while len(left):
        kept.append(left[0])
        left = left[1:][box_iou(boxes[left[:1]], boxes[left[1:]])[0] <= threshold]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.int64)


@pytest.mark.parametrize("check, function", [(check_nms, by_removal), (check_propose, map_by_map)])
def test_another_right_way_passes(check, function, capsys):
    passes(check, function, capsys)


def in_turn(logits, deltas, anchors, sizes, before, after, nms_iou=0.7, min_size=0.0):
    parts = [
        package_propose([x], [y], [z], sizes, before, after, nms_iou, min_size)
        for x, y, z in zip(logits, deltas, anchors, strict=True)
    ]
    return [torch.cat([part[image] for part in parts])[:after] for image in range(len(sizes))]


WRONG_PROPOSE = {
    "not moved": (unmoved, "decode the deltas"),
    "not clipped": (planted(clip=None), "put corners outside the image on its border"),
    "height and width swapped": (planted(clip=lambda size, sizes: size[::-1]), "a size is (H, W)"),
    "clipped to the padded batch (TRAPS 35)": (planted(clip=padded), "what follows is padding"),
    "clipped to the largest image": (
        planted(clip=lambda size, sizes: tuple(map(max, *sizes, *sizes))), "clipped to the largest image"
    ),
    "clipped to the first image": (planted(clip=lambda size, sizes: sizes[0]), "the size of the first"),
    "empty ones stay": (planted(order="never"), "drop those with a side"),
    "empty ones dropped before the clip": (planted(order="before"), "You drop empty boxes before clipping"),
    "min_size itself is enough": (
        planted(enough=lambda box, m: torch.where((box[:, 2:] - box[:, :2] >= m).all(1))[0]), "one that equals it goes"
    ),
    "min_size of the area": (
        planted(enough=lambda box, m: torch.where((box[:, 2:] - box[:, :2]).prod(1) > m)[0]), "not of the area"
    ),
    "min_size ignored": (planted(enough=lambda box, m: large_enough(box, 0.0)), "min_size is not used"),
    "one limit over all maps (TRAPS 28)": (planted(all_maps=True), "for each map by itself"),
    "NMS over all maps": (planted(groups=False), "boxes of two maps do not suppress each other"),
    "the last limit for each map": (planted(cut_maps=True), "The limit `after` is for the image"),
    "map after map": (in_turn, "order the boxes of all maps together"),
    "NMS before the first limit": (nms_first, "NMS comes after the first limit"),
    "no last limit": (
        lambda *a, **o: package_propose(*a[:5], 10**6, **o), "The limit `after` is not applied"
    ),
    "the last limit over the batch (TRAPS 28)": (over_the_batch(False), "applied to the whole batch"),
    "the same, as many times as images": (over_the_batch(True), "shared by the batch"),
    "no map smaller than the limit": (
        lambda lo, *a, **o: [x.topk(a[3]) for x in lo] and package_propose(lo, *a, **o), "stopped with RuntimeError"
    ),
    "of one image only": (lambda *a, **o: package_propose(*a, **o)[0], "must be a list with the boxes of each"),
    "with the scores": (
        lambda *a, **o: [torch.cat([b, b[:, :1]], 1) for b in package_propose(*a, **o)], "must be an (R, 4) tensor"
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong, hint", WRONG_PROPOSE.values(), ids=list(WRONG_PROPOSE))
def test_a_wrong_propose_fails_with_its_hint(wrong, hint):
    fails_with(check_propose, wrong, hint)


def random_boxes(count, g):
    low = torch.rand(count, 2, generator=g) * torch.tensor([200.0, 90.0])
    return torch.cat([low, low + 4 + torch.rand(count, 2, generator=g) * 60], dim=1)


@pytest.mark.parametrize("seed", range(5))
def test_solved_nms_is_the_packages(seed):
    g = torch.Generator().manual_seed(seed)
    boxes = random_boxes(200, g)
    boxes = torch.cat([boxes, boxes[:40]])  # duplicates
    scores = (torch.randn(240, generator=g) * 4).round()  # and ties
    for threshold in (0.0, 0.3, 0.5, 0.7, 1.0):
        assert torch.equal(solutions("04")["my_nms"](boxes, scores, threshold), nms(boxes, scores, threshold))


@pytest.mark.parametrize("seed", range(5))
def test_solved_propose_is_the_packages(seed):
    g = torch.Generator().manual_seed(seed)
    anchors = [random_boxes(count, g) for count in (150, 60, 9)]
    logits = [torch.randn(3, len(a), generator=g) for a in anchors]
    deltas = [torch.randn(3, len(a), 4, generator=g) * 0.3 for a in anchors]
    answers = logits, deltas, anchors, [(100, 230), (64, 200), (90, 90)]
    for options in ((50, 20), (1000, 1000, 0.5, 8.0), (5, 3, 0.3)):
        mine, theirs = (f(*answers, *options) for f in (solutions("04")["my_propose"], package_propose))
        assert len(mine) == 3 and all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
