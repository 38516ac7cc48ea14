"""Check of notebook 04's `my_propose`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...boxes import clip_boxes_to_image, decode_boxes, large_enough
from ...config import ModelConfig
from ...nms import batched_nms
from ...rpn import propose
from .kit import Wrong, check, first_difference, teacher
from .nms import told

Answers = tuple[list[Tensor], list[Tensor], list[Tensor], list[tuple[int, int]]]  # logits, deltas, anchors, sizes


def _propose_like(
    logits, deltas, anchors, sizes, before, after, nms_iou=0.7, min_size=0.0,
    top="map", decode=True, clip="own", empty="after", groups="map", limit="image", best=True,
) -> list[Tensor]:  # fmt: skip
    """Proposals, and the ways to get them wrong."""
    ranked = []
    for image, size in enumerate(sizes):
        scores, boxes, level = (
            torch.cat([logit[image] for logit in logits]),
            torch.cat([_moved(d[image], a, decode) for d, a in zip(deltas, anchors, strict=True)]),
            torch.cat([torch.full((len(a),), k) for k, a in enumerate(anchors)]),
        )
        if top == "after nms":  # NMS of everything
            order = batched_nms(_clip(boxes, size, sizes, clip), scores, level, nms_iou)
        else:
            order = scores.argsort(descending=best, stable=True)
        if top == "all":
            order = order[:before]
        else:
            order = torch.cat([order[level[order] == k][:before] for k in range(len(anchors))])
        if empty == "before":
            order = order[large_enough(boxes[order], min_size)]
        boxes = _clip(boxes, size, sizes, clip)
        if empty not in ("never", "before"):
            sides = boxes[order, 2:] - boxes[order, :2]
            keep = {"after": (sides > min_size).all(1), "at least": (sides >= min_size).all(1)}
            keep |= {"area": sides.prod(1) > min_size, "at 0": (sides > 0).all(1)}
            order = order[keep[empty]]
        group = level[order] if groups == "map" else torch.zeros_like(order)
        order = order[batched_nms(boxes[order], scores[order], group, nms_iou)]
        if limit == "map":
            order = torch.cat([order[level[order] == k][:after] for k in range(len(anchors))])
            order = order[scores[order].argsort(descending=True, stable=True)]
        if limit == "in turn":
            order = torch.cat([order[level[order] == k] for k in range(len(anchors))])
        ranked.append((boxes[order], scores[order]))
    if limit in ("batch", "batch of N"):
        every = torch.cat([score for _, score in ranked])
        last = every.topk(min(after if limit == "batch" else after * len(sizes), len(every))).values[-1:]
        return [box[score >= last] for box, score in ranked]
    return [box if limit in ("map", "none") else box[:after] for box, _ in ranked]


def _moved(deltas: Tensor, anchors: Tensor, decode: bool) -> Tensor:
    return decode_boxes(deltas, anchors) if decode else anchors


def _clip(boxes: Tensor, size: tuple[int, int], sizes: Sequence[tuple[int, int]], how: str) -> Tensor:
    batch = max(h for h, _ in sizes), max(w for _, w in sizes)
    padded = -(-batch[0] // 32) * 32, -(-batch[1] // 32) * 32
    limits = {"own": size, "batch": batch, "padded": padded, "swapped": size[::-1], "first": sizes[0]}
    return boxes if how == "never" else clip_boxes_to_image(boxes, limits[how])


PROPOSE_MISTAKES = {
    "The boxes are not moved: decode the deltas of the anchors that you have chosen": {"decode": False},
    "The boxes are not clipped: put corners outside the image on its border": {"clip": "never"},
    "Height and width are swapped in the clip: a size is (H, W)": {"clip": "swapped"},
    "The boxes are clipped to the padded batch: each image ends at its own size, what follows is padding": {
        "clip": "padded"
    },
    "The boxes are clipped to the largest image of the batch: each image ends at its own size": {"clip": "batch"},
    "All images are clipped to the size of the first": {"clip": "first"},
    "Boxes without an area get through: drop those with a side that does not exceed min_size": {"empty": "never"},
    "You drop empty boxes before clipping: what lies outside the image becomes empty by clipping": {"empty": "before"},
    "A side must exceed min_size: one that equals it goes, so that at 0 the empty boxes go": {"empty": "at least"},
    "min_size is of both sides, not of the area": {"empty": "area"},
    "min_size is not used": {"empty": "at 0"},
    "The first limit is for each map by itself: over all maps, the map with the highest scores takes every place": {
        "top": "all"
    },
    "NMS comes after the first limit: take the best `before` of each map, then suppress": {"top": "after nms"},
    "You keep the least likely anchors: the highest logits are the best": {"best": False},
    "NMS runs for each map by itself: boxes of two maps do not suppress each other": {"groups": "one"},
    "The limit `after` is for the image: best first over all maps, then cut": {"limit": "map"},
    "Not best first: order the boxes of all maps together by score before you cut": {"limit": "in turn"},
    "The limit `after` is not applied": {"limit": "none"},
    "The limit `after` is applied to the whole batch: an image must not lose proposals to its neighbours": {
        "limit": "batch"
    },
    "The limit is shared by the batch, `after` times its images: an image must not lose proposals to its neighbours": {
        "limit": "batch of N"
    },
}


def _expect_proposals(student, answers: Answers, say: str, before=1000, after=1000, **limits) -> list[Tensor]:
    """Raises Wrong unless the student proposes what the package does."""
    config = ModelConfig(
        rpn_pre_nms_test=before, rpn_post_nms_test=after, rpn_nms=limits.get("nms_iou", 0.7),
        rpn_min_size=limits.get("min_size", 0.0),
    )  # fmt: skip
    wanted = propose(*answers, config, training=False)
    got = student(*answers, before, after, **limits)
    N = len(answers[3])
    if not isinstance(got, list | tuple) or len(got) != N:
        what = f"{len(got)} long" if isinstance(got, list | tuple) else f"a {type(got).__name__}"
        raise Wrong(f"the result must be a list with the boxes of each of {N} image(s); it is {what}")
    for image, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
        if not isinstance(mine, Tensor) or mine.dim() != 2 or mine.shape[1] != 4:
            shape = tuple(mine.shape) if isinstance(mine, Tensor) else type(mine).__name__
            raise Wrong(f"the proposals of an image must be an (R, 4) tensor; those of image {image} are {shape}")
        if same(mine, theirs):
            continue
        hints = {
            hint: lambda how=how: _propose_like(*answers, before, after, **limits, **how)
            for hint, how in PROPOSE_MISTAKES.items()
        }
        hint = told(hints, lambda boxes: all(same(a, b) for a, b in zip(boxes, got, strict=True)))
        of = f" of image {image}" if N > 1 else ""
        if mine.shape != theirs.shape:
            raise Wrong(f"{say}: {len(mine)} proposals{of}, expected {len(theirs)}{hint}")
        raise Wrong(f"{say}: proposals{of}, {first_difference(mine, theirs, 1e-3)}{hint}")
    return list(got)


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-3)


def _answers(boxes: Sequence[Sequence[Sequence[float]]], logits: Sequence[Sequence[float]], size) -> Answers:
    """Of one image: for each map anchors, which nothing moves, and their logits."""
    anchors = [torch.tensor(level, dtype=torch.float32).reshape(-1, 4) for level in boxes]
    scores = [torch.tensor([level], dtype=torch.float32) for level in logits]
    return scores, [torch.zeros(1, len(a), 4) for a in anchors], anchors, [size]


def _some_answers(seed: int, sizes: Sequence[tuple[int, int]]) -> Answers:
    """Of a batch, for three maps that differ much in their number of anchors and in their scores."""
    g = torch.Generator().manual_seed(seed)
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    logits, deltas, anchors = [], [], []
    for level, count in enumerate((90, 40, 7)):
        side = 12.0 * 2**level
        centre = torch.rand(count, 2, generator=g) * torch.tensor([float(width), float(height)])
        half = side * (0.4 + 0.2 * torch.rand(count, 2, generator=g))
        anchors.append(torch.cat([centre - half, centre + half], dim=1))
        logits.append(torch.randn(len(sizes), count, generator=g) * 2 + 1 - level)
        deltas.append(torch.randn(len(sizes), count, 4, generator=g) * 0.2)
    for image in range(len(sizes)):  # some images are clearer than others
        for logit in logits:
            logit[image] += 2.0 * (image % 2)
    return logits, deltas, anchors, list(sizes)


def one_map_one_image(student) -> None:
    boxes = [[[10, 10, 30, 20], [50, 10, 70, 20], [12, 10, 32, 20], [80, 30, 90, 50]]]
    answers = _answers(boxes, [[1.0, 3.0, 2.0, -1.0]], (60, 100))
    _expect_proposals(student, answers, "four anchors, of which two overlap by 0.82")
    _expect_proposals(student, answers, "the same, the best 2 after NMS", after=2)
    _expect_proposals(student, answers, "the same with NMS at 0.9", nms_iou=0.9)


def moved_by_their_deltas(student) -> None:
    answers = _answers([[[10, 10, 30, 20], [50, 10, 70, 30]]], [[0.0, 1.0]], (60, 100))
    answers[1][0][0, 0] = torch.tensor([0.5, -0.2, 0.3, 0.0])
    _expect_proposals(student, answers, "two anchors, of which the worse one moves")


def clipped_to_the_image(student) -> None:
    boxes = [[[80, 10, 130, 30], [20, 90, 60, 130], [-8, -6, 20, 12]]]
    _expect_proposals(student, _answers(boxes, [[3.0, 2.0, 1.0]], (104, 110)), "boxes over the border of 104 x 110")


def nothing_without_an_area(student) -> None:
    boxes = [[[20, 110, 60, 140], [20, 90, 60, 130], [5, 5, 45, 8], [50, 20, 70, 40], [80, 50, 82.5, 53]]]
    answers = _answers(boxes, [[4.0, 3.0, 2.0, 1.0, 0.0]], (104, 110))
    say = "a box below the image of 104 rows, one 14 high after clipping, 40 x 3, 20 x 20 and 2.5 x 3"
    for min_size in (10.0, 3.0, 0.0):
        _expect_proposals(student, answers, f"{say}, with min_size {min_size:.0f}", min_size=min_size)


def nothing_at_all(student) -> None:
    with teacher("Boxes that are all dropped leave an image without proposals, shape (0, 4)"):
        _expect_proposals(student, _answers([[[0, 70, 9, 80]]], [[1.0]], (60, 100)), "an anchor below the image")


def a_limit_for_each_map(student) -> None:
    boxes = [
        [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]],
        [[0, 20, 40, 60], [50, 20, 90, 60], [5, 58, 45, 98]],
        [[10, 10, 90, 90]],
    ]
    answers = _answers(boxes, [[9.0, 8.0, 7.0, 6.0], [3.0, 4.0, 5.0], [2.0]], (100, 140))
    with teacher("A map may have fewer anchors than the limit"):
        _expect_proposals(student, answers, "three maps of 4, 3 and 1 anchors, the best 2 of each", before=2)
    _expect_proposals(student, answers, "the same, and the best 4 of all", before=3, after=4)
    near = [[[10, 10, 30, 20], [11, 10, 31, 20], [50, 30, 70, 40], [90, 40, 99, 60]]]
    answers = _answers(near, [[4.0, 3.0, 2.0, 1.0]], (60, 100))
    _expect_proposals(student, answers, "the best 2 of a map are near-duplicates", before=2)


def maps_do_not_compete(student) -> None:
    boxes = [[[10, 10, 40, 30], [60, 10, 80, 30]], [[11, 10, 41, 30], [60, 11, 80, 31]]]
    answers = _answers(boxes, [[1.0, 4.0], [3.0, 2.0]], (60, 100))
    _expect_proposals(student, answers, "two maps with nearly the same boxes")
    _expect_proposals(student, answers, "the same, and the best 3 of both maps", after=3)


def each_image_ends_at_its_own_size(student) -> None:
    answers = _some_answers(5, [(60, 100), (90, 70), (40, 120)])
    _expect_proposals(student, answers, "images of 60 x 100, 90 x 70 and 40 x 120 in one batch")


def neighbours_do_not_matter(student) -> None:
    logits, deltas, anchors, sizes = answers = _some_answers(6, [(60, 100), (60, 100), (50, 90), (60, 80)])
    together = _expect_proposals(student, answers, "four images, 20 of each map, 10 of each image", 20, 10)
    for image in range(4):
        rows = slice(image, image + 1)
        alone = [x[rows] for x in logits], [x[rows] for x in deltas], anchors, sizes[rows]
        got = student(*alone, 20, 10)
        if not same(got[0], together[image]):
            raise Wrong(f"image {image} alone has other proposals than in a batch of four")


def random_answers_against_the_package(student) -> None:
    for seed in range(10, 16):
        answers = _some_answers(seed, [(seed * 6, 130), (90, seed * 9)])
        for before, after, nms_iou, min_size in ((30, 25, 0.7, 0.0), (1000, 1000, 0.5, 6.0), (15, 8, 0.3, 0.0)):
            say = f"two images, {before} of each map, {after} of each image, NMS at {nms_iou}, min_size {min_size}"
            _expect_proposals(student, answers, say, before, after, nms_iou=nms_iou, min_size=min_size)


@check(
    one_map_one_image, moved_by_their_deltas, clipped_to_the_image, nothing_without_an_area, nothing_at_all,
    a_limit_for_each_map, maps_do_not_compete, each_image_ends_at_its_own_size, neighbours_do_not_matter,
    random_answers_against_the_package,
)  # fmt: skip
def check_propose(student) -> None:
    """Proposals of N images from logits, deltas, anchors and sizes -> for each image (R_i, 4), best first."""
