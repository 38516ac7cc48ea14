"""Checks of notebook 03: `my_match`, `my_sample`."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...matching import BACKGROUND, IGNORED, match
from .kit import Wrong, check, expect_close, expect_tensor, teacher

HIGH, LOW = 0.7, 0.3

# ---- match


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


# ---- sample


def _some_matches(positives: int, negatives: int, ignored: int, seed: int) -> Tensor:
    """Matches in a random order; a third of the positives belong to object 0."""
    g = torch.Generator().manual_seed(seed)
    kinds = [torch.arange(positives) % 3, torch.full((negatives,), BACKGROUND), torch.full((ignored,), IGNORED)]
    matches = torch.cat(kinds)
    return matches[torch.randperm(len(matches), generator=g)]


def _draw(sample, matches: Tensor, size: int, fraction: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """What the student draws, which must be two lists of indices of the right kind, none twice."""
    got = sample(matches.clone(), size, fraction, torch.Generator().manual_seed(seed))
    if not isinstance(got, tuple | list) or len(got) != 2 or not all(isinstance(part, Tensor) for part in got):
        raise Wrong("the result must be two tensors: the indices of the positives, and those of the negatives")
    for part, name, kind in zip(got, ("positives", "negatives"), (matches >= 0, matches == BACKGROUND), strict=True):
        if part.dtype != torch.int64 or part.dim() != 1:
            raise Wrong(
                f"the {name} must be a list of indices, one axis, int64; yours are {tuple(part.shape)} {part.dtype}"
            )
        if len(part) and not 0 <= int(part.min()) <= int(part.max()) < len(matches):
            raise Wrong(f"the {name} have the index {int(part.max())}; there are {len(matches)} anchors")
        _right_kind(matches[part], kind[part], name)
        if len(part.unique()) < len(part):
            raise Wrong(
                f"one of the {name} is drawn twice. Draw without putting back: a random *order* (torch.randperm), "
                "of which you take the beginning, not random numbers (randint)"
            )
    return got[0], got[1]


def _right_kind(values: Tensor, right: Tensor, name: str) -> None:
    if bool(right.all()):
        return
    wrong = values[~right]
    if name == "negatives" and bool((wrong == IGNORED).all()):
        raise Wrong("some negatives are ignored anchors (-2). Only -1 is background; below 0 is not enough")
    raise Wrong(
        f"{len(wrong)} of your {len(values)} {name} are not {name}. Where a random order counts the {name} only, its "
        "numbers are places in *their* list, not yet indices of anchors"
    )


def _expect_count(part: Tensor, wanted: int, name: str, say: str, hints: dict[int, str]) -> None:
    if len(part) != wanted:
        hint = hints.get(len(part), "")
        raise Wrong(f"{say}: {len(part)} {name}, expected {wanted}{'. ' + hint if hint else ''}")


def the_batch_of_the_text(sample) -> None:
    """8 of 10 positives and 100 negatives, at most a quarter positive."""
    matches = _some_matches(10, 100, 20, 0)
    positive, negative = _draw(sample, matches, 8, 0.25)
    say = "8 of 10 positives and 100 negatives, a quarter positive"
    too_many = "The positives are limited: at most a share positive_fraction of the batch"
    _expect_count(positive, 2, "positives", say, {10: too_many, 8: too_many})
    _expect_count(negative, 6, "negatives", say, {100: "The whole batch has `size` anchors, not more"})


def object_0_counts(sample) -> None:
    matches = torch.tensor([0, -1, 0, -1, -1, 0])
    positive, _ = _draw(sample, matches, 6, 0.5)
    _expect_count(
        positive, 3, "positives", "three anchors of object 0", {0: "Index 0 is an object, too: >= 0, not > 0"}
    )


def negatives_fill_what_positives_leave(sample) -> None:
    matches = _some_matches(3, 100, 5, 1)
    positive, negative = _draw(sample, matches, 16, 0.5)
    say = "16 of 3 positives and 100 negatives, half positive"
    _expect_count(positive, 3, "positives", say, {})
    hint = "Only 3 positives exist: negatives fill the *rest of the batch*, not just their own share"
    _expect_count(negative, 13, "negatives", say, {8: hint})


def a_fraction_is_cut(sample) -> None:
    matches = _some_matches(20, 20, 0, 2)
    positive, negative = _draw(sample, matches, 7, 0.5)
    hint = "7 x 0.5 = 3.5, and *at most* that many: cut, do not round"
    _expect_count(positive, 3, "positives", "7 of 20 and 20, half positive", {4: hint})
    _expect_count(negative, 4, "negatives", "7 of 20 and 20, half positive", {3: "7 - 3 = 4: negatives fill the rest"})


def too_few_of_both(sample) -> None:
    matches = _some_matches(2, 3, 4, 3)
    positive, negative = _draw(sample, matches, 64, 0.5)
    with teacher("Take all that there are; never fill up with ignored ones or with repetitions"):
        _expect_count(positive, 2, "positives", "64 of 2 positives and 3 negatives", {})
        _expect_count(negative, 3, "negatives", "64 of 2 positives and 3 negatives", {})


def nobody_at_all(sample) -> None:
    for values in ([], [IGNORED, IGNORED]):
        positive, negative = _draw(sample, torch.tensor(values, dtype=torch.int64), 8, 0.5)
        expect_tensor(positive, (0,), "without positives the first result")
        expect_tensor(negative, (0,), "without negatives the second result")


def everyone_has_the_same_chance(sample) -> None:
    """Of 12 positives 3 are drawn, 400 times: each about 100 times; and of 24 negatives 3, each about 50 times."""
    matches = _some_matches(12, 24, 4, 4)
    drawn = torch.zeros(len(matches))
    for seed in range(400):
        for part in _draw(sample, matches, 6, 0.5, seed):
            drawn[part] += 1
    for name, chosen, mean in (("positives", matches >= 0, 100.0), ("negatives", matches == BACKGROUND, 50.0)):
        counts = drawn[chosen]
        if int((counts == 0).sum()):
            raise Wrong(
                f"in 400 draws some {name} never came: those at the end of the list have no chance. They are the "
                "anchors of the coarsest maps, those of large objects: draw in a random order"
            )
        if float((counts - mean).abs().max()) > mean**0.5 * 5:
            raise Wrong(f"in 400 draws one of the {name} came {int(counts.max())} times, on average it is {mean:.0f}")


def the_generator_decides(sample) -> None:
    matches = _some_matches(50, 50, 5, 5)
    once = _draw(sample, matches, 20, 0.5, seed=3)
    again = _draw(sample, matches, 20, 0.5, seed=3)
    if any(a.tolist() != b.tolist() for a, b in zip(once, again, strict=True)):
        raise Wrong("the same generator seed gave two different draws: hand `generator` to the function that draws")


@check(
    the_batch_of_the_text, object_0_counts, negatives_fill_what_positives_leave, a_fraction_is_cut, too_few_of_both,
    nobody_at_all, everyone_has_the_same_chance, the_generator_decides,
)  # fmt: skip
def check_sample(student) -> None:
    """A mini-batch: matches (A,), size, share of positives, generator -> indices of positives and of negatives."""
