"""Check of notebook 03: `my_sample`."""

import torch
from torch import Tensor

from ...matching import BACKGROUND, IGNORED
from .kit import Wrong, check, expect_tensor, teacher


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
