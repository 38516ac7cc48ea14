"""Check of notebook 03: `my_match`."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...matching import BACKGROUND, IGNORED, match
from .kit import Wrong, check, expect_close, expect_tensor, teacher

HIGH, LOW = 0.7, 0.3


def _match_like(
    iou: Tensor, high, low, claim: bool, zero=False, first=False, keeps=True, strict=False, after=False, ignore=True
) -> Tensor:
    """Matches, and the ways to get them wrong."""
    G, A = iou.shape
    if not G or not A:
        return torch.full((A,), BACKGROUND)
    best_iou, best = iou.max(dim=0)
    matches = best.clone()
    below, background = (best_iou <= high, best_iou <= low) if strict else (best_iou < high, best_iou < low)
    matches[below] = IGNORED if ignore else BACKGROUND
    if not after:
        matches[background] = BACKGROUND
    if claim:
        top = iou.amax(dim=1, keepdim=True)
        claims = (iou == top) & (zero | (top > 0))  # (G, A)
        if first:
            claims &= torch.arange(A) == iou.argmax(dim=1, keepdim=True)
        claimer = best
        if not keeps:  # the truth that claims; of two the later one
            claimer = torch.where(claims, torch.arange(G)[:, None], -1).amax(dim=0)
        matches = torch.where(claims.any(dim=0), claimer, matches)
    if after:
        matches[background] = BACKGROUND
    return matches


def _match_mistakes(iou: Tensor, claim: bool, high=HIGH, low=LOW) -> dict:
    def like(**how):
        return lambda: _match_like(iou, high, low, **({"claim": claim} | how))

    def swapped() -> Tensor:
        matches = like()()
        return torch.where(matches < 0, BACKGROUND + IGNORED - matches, matches)

    return {
        "Background was written after the claims and took claimed anchors away again": like(after=True),
        "An object whose best IoU is 0 claims every anchor that also has 0, which is all of them: such an object "
        "must claim nothing": like(zero=True),
        "An object with no anchor at `high` or above should claim its best one; here nobody answers for it": like(
            claim=False
        ),
        "Anchors are claimed although allow_low_quality is off: the heads ask for a match without it": like(claim=True),
        "An object claims *all* anchors tied at its best IoU; argmax finds the first only": like(first=True),
        "A claimed anchor answers for the object that *it* overlaps most, which need not be the claiming one": like(
            keeps=False
        ),
        "At exactly `high` an anchor is positive, at exactly `low` it is ignored: >= and <": like(strict=True),
        "An anchor between the thresholds is neither: -2, ignored, not -1, background": like(ignore=False),
        "-1 and -2 have changed places: background is -1, ignored is -2": swapped,
    }


def _try_match(function: Callable, iou, wanted: list[int], say: str, claim=True) -> None:
    iou = torch.as_tensor(iou)
    got = function(iou, HIGH, LOW, claim)
    if isinstance(got, Tensor) and got.shape == (iou.shape[0],) and iou.shape[0] != iou.shape[1]:
        raise Wrong(
            f"{say}: you give an answer for each object, {iou.shape[0]} of them; the answer is for each anchor, that "
            "is for each column of the table"
        )
    expect_close(got, torch.tensor(wanted), say, _match_mistakes(iou, claim))
    if got.dtype != torch.int64:
        raise Wrong(f"the answers are indices, int64; yours are {str(got.dtype).split('.')[-1]}")


def the_table_of_the_text(match_them) -> None:
    table = [[0.8, 0.5, 0.2, 0.1, 0.0], [0.0, 0.1, 0.4, 0.0, 0.2]]
    _try_match(match_them, table, [0, IGNORED, 1, BACKGROUND, BACKGROUND], "the table of the text")


def exactly_on_a_threshold(match_them) -> None:
    table = torch.tensor([[0.75, 0.7, 0.25, 0.2, 0.0]])  # of halves and quarters float32 has the exact value
    wanted = torch.tensor([0, IGNORED, IGNORED, BACKGROUND, BACKGROUND])
    say = "one object, IoUs 0.75, 0.7, 0.25, 0.2, 0, thresholds 0.75 and 0.25, nobody claimed"
    expect_close(match_them(table, 0.75, 0.25, False), wanted, say, _match_mistakes(table, False, 0.75, 0.25))


def no_claims_for_the_heads(match_them) -> None:
    _try_match(match_them, [[0.2, 0.4, 0.1]], [BACKGROUND, IGNORED, BACKGROUND], "allow_low_quality off", claim=False)


def the_best_object_wins(match_them) -> None:
    table = [[0.8, 0.75, 0.1, 0.0], [0.9, 0.2, 0.2, 0.1], [0.1, 0.1, 0.75, 0.2]]
    _try_match(match_them, table, [1, 0, 2, BACKGROUND], "three objects, four anchors", claim=False)


def all_that_are_tied_are_claimed(match_them) -> None:
    _try_match(match_them, [[0.25, 0.4, 0.4, 0.1]], [BACKGROUND, 0, 0, BACKGROUND], "two anchors tied at 0.4")


def a_claim_below_the_low_threshold_stays(match_them) -> None:
    _try_match(match_them, [[0.2, 0.1, 0.05]], [0, BACKGROUND, BACKGROUND], "an object whose best anchor has 0.2")


def an_object_that_nothing_overlaps_claims_nothing(match_them) -> None:
    table = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.4]]
    _try_match(match_them, table, [BACKGROUND, BACKGROUND, 1], "object 0 overlaps no anchor")


def a_claimed_anchor_keeps_its_own_best_object(match_them) -> None:
    table = torch.tensor([[0.5, 0.1, 0.0], [0.6, 0.2, 0.05], [0.4, 0.1, 0.1]])
    wanted = torch.tensor([1, BACKGROUND, BACKGROUND])
    with teacher("A claimed anchor answers for the object that *it* overlaps most, which need not be the claiming one"):
        expect_close(
            match_them(table, HIGH, LOW, True), wanted, "all three objects claim anchor 0, and it has 0.6 of 1"
        )


def no_objects_and_no_anchors(match_them) -> None:
    _try_match(match_them, torch.zeros(0, 3), [BACKGROUND] * 3, "no objects, three anchors: all background")
    expect_tensor(match_them(torch.zeros(2, 0), HIGH, LOW, True), (0,), "for two objects and no anchors the result")


def random_tables_against_the_package(match_them) -> None:
    for seed in range(10, 22):
        g = torch.Generator().manual_seed(seed)
        iou = (torch.rand(1 + seed % 4, 7 + seed, generator=g) * 20).floor() / 20  # many ties
        kept = iou.clone()
        wanted = match(kept, HIGH, LOW, seed % 2 == 0)
        _try_match(match_them, iou, wanted.tolist(), f"{len(iou)} objects, {7 + seed} anchors", seed % 2 == 0)
        if not torch.equal(iou, kept):
            raise Wrong("your function changed the table that it was given: work on a copy")


@check(
    the_table_of_the_text, exactly_on_a_threshold, no_claims_for_the_heads, the_best_object_wins,
    all_that_are_tied_are_claimed, a_claim_below_the_low_threshold_stays,
    an_object_that_nothing_overlaps_claims_nothing, a_claimed_anchor_keeps_its_own_best_object,
    no_objects_and_no_anchors, random_tables_against_the_package,
)  # fmt: skip
def check_match(student) -> None:
    """Who answers for what: IoU (G, A), two thresholds -> (A,) index of the object, -1 background, -2 ignored."""
