"""Notebook 03's checks: the package's functions pass, the mistakes of real detectors fail, each with its hint."""

import pytest
import torch
from matplotlib.figure import Figure
from planted import fails_with, passes, waits
from solved import solutions

from mrcnn_scratch.course.checks import check_match, check_sample
from mrcnn_scratch.matching import BACKGROUND, IGNORED, match, sample
from mrcnn_scratch.visualize.matching import POSITIVE_COLOUR, draw_labels


@pytest.mark.parametrize("check, function", [(check_match, match), (check_sample, sample)])
def test_the_packages_function_passes_and_an_unwritten_one_waits(check, function, capsys):
    passes(check, function, capsys)
    waits(check, capsys)


def plain(iou, high, low, strict=False, between=IGNORED):
    """Every anchor by its own best object, nobody claimed."""
    if not iou.numel():
        return torch.full((iou.shape[1],), BACKGROUND)
    best_iou, matches = iou.max(dim=0)
    matches = torch.where(best_iou <= high if strict else best_iou < high, between, matches)
    return torch.where(best_iou <= low if strict else best_iou < low, BACKGROUND, matches)


def claimed_object_by_object(iou, high, low, claim=False):
    """TRAPS 25: each object writes its own number, the later ones over the earlier ones."""
    matches = plain(iou, high, low)
    if claim and iou.numel():
        for truth, row in enumerate(iou):
            if row.max() > 0:
                matches[row == row.max()] = truth
    return matches


def claimed_first_come(iou, high, low, claim=False):
    """TRAPS 25 the other way round: the earlier objects write last."""
    matches = plain(iou, high, low)
    if claim and iou.numel():
        for truth in range(len(iou) - 1, -1, -1):
            if iou[truth].max() > 0:
                matches[iou[truth] == iou[truth].max()] = truth
    return matches


def claimed_of_zero(iou, high, low, claim=False):
    """TRAPS 24, as torchvision's Matcher: equal to the best, even where the best is 0."""
    matches = plain(iou, high, low)
    if claim and iou.numel():
        everyone = (iou == iou.amax(dim=1, keepdim=True)).any(dim=0)
        matches = torch.where(everyone, iou.argmax(dim=0), matches)
    return matches


def claimed_once(iou, high, low, claim=False):
    """argmax finds one of those that are tied."""
    matches = plain(iou, high, low)
    if claim and iou.numel():
        one = iou.argmax(dim=1)[iou.amax(dim=1) > 0]
        matches[one] = iou.argmax(dim=0)[one]
    return matches


def background_last(iou, high, low, claim=False):
    """TRAPS 26, as Detectron: what is below the low threshold is written over the claims."""
    matches = match(iou, high, low, claim)
    return torch.where(iou.amax(dim=0) < low, BACKGROUND, matches) if iou.numel() else matches


def writes_into_the_table(iou, high, low, claim=False):
    matches = match(iou, high, low, claim)
    iou.clamp_(min=low)
    return matches


def stops_without_objects(iou, high, low, claim=False):
    iou.max(dim=0)
    return match(iou, high, low, claim)


def turned(iou, high, low, claim=False):
    return match(iou.T, high, low, claim)


def changed_places(iou, high, low, claim=False):
    matches = match(iou, high, low, claim)
    return torch.where(matches < 0, -3 - matches, matches)


def strict(iou, high, low, claim=False):
    matches = match(iou, high, low, claim)
    return matches if claim else plain(iou, high, low, strict=True)


WRONG_MATCH = {
    "nobody is claimed": (lambda iou, high, low, claim=False: plain(iou, high, low), "here nobody answers for it"),
    "claims always": (lambda iou, high, low, claim=False: match(iou, high, low, True), "allow_low_quality is off"),
    "IoU 0 claims all (TRAPS 24)": (claimed_of_zero, "such an object must claim nothing"),
    "the claimer writes its number (TRAPS 25)": (claimed_object_by_object, "the object that *it* overlaps most"),
    "the first claimer stays (TRAPS 25)": (claimed_first_come, "the object that *it* overlaps most"),
    "one of the tied": (claimed_once, "argmax finds the first only"),
    "background last (TRAPS 26)": (background_last, "Background was written after the claims"),
    "strict thresholds": (strict, ">= and <"),
    "nothing is ignored": (
        lambda iou, high, low, claim=False: plain(iou, high, low, between=BACKGROUND) if not claim
        else torch.where(match(iou, high, low, True) == IGNORED, BACKGROUND, match(iou, high, low, True)),
        "neither: -2, ignored",
    ),
    "-1 and -2 swapped": (changed_places, "have changed places"),
    "for each object": (turned, "for each column of the table"),
    "stops without objects": (stops_without_objects, "no objects and no anchors"),
    "writes into the table": (writes_into_the_table, "work on a copy"),
    "floats": (lambda *given: match(*given).float(), "yours are float32"),
}  # fmt: skip


@pytest.mark.parametrize("wrong, hint", WRONG_MATCH.values(), ids=list(WRONG_MATCH))
def test_a_wrong_match_fails_with_its_hint(wrong, hint):
    fails_with(check_match, wrong, hint)


def draw(
    matches, size, fraction, generator=None, *, least=0, negative=lambda m: m == BACKGROUND, take=None, cut=int,
    fill=True,
):  # fmt: skip
    """A sample with one thing to get wrong at a time."""

    def some(indices, count):
        if take:
            return take(indices, count, generator)
        return indices[torch.randperm(len(indices), generator=generator)[:count]]

    most = cut(size * fraction)
    positives = some(torch.where(matches >= least)[0], most)
    count = size - len(positives) if fill else size - most
    return positives, some(torch.where(negative(matches))[0], count)


def with_replacement(indices, count, generator):
    if not len(indices):
        return indices
    return indices[torch.randint(len(indices), (min(count, len(indices)),), generator=generator)]


def the_first(indices, count, generator):
    return indices[:count]


def in_its_own_list(indices, count, generator):
    return torch.randperm(len(indices), generator=generator)[:count]


def global_random(indices, count, generator):
    return indices[torch.randperm(len(indices))[:count]]


def repeated(indices, count, generator):
    order = torch.randperm(len(indices), generator=generator)
    return indices[order.repeat(count)[:count]]


WRONG_SAMPLE = {
    "with replacement, Detectron (TRAPS 26)": (lambda *a: draw(*a, take=with_replacement), "is drawn twice"),
    "filled up with repetitions (TRAPS 31)": (lambda *a: draw(*a, take=repeated), "is drawn twice"),
    "as many positives as there are": (lambda *a: draw(*a, cut=lambda most: 10**6), "The positives are limited"),
    "negatives do not fill (TRAPS 31)": (lambda *a: draw(*a, fill=False), "negatives fill the *rest of the batch*"),
    "object 0 left out": (lambda *a: draw(*a, least=1), ">= 0, not > 0"),
    "ignored as negatives": (lambda *a: draw(*a, negative=lambda m: m < 0), "some negatives are ignored anchors"),
    "rounded": (lambda *a: draw(*a, cut=lambda most: int(most + 0.5)), "cut, do not round"),
    "the first ones": (lambda *a: draw(*a, take=the_first), "those at the end of the list have no chance"),
    "places, not indices": (lambda *a: draw(*a, take=in_its_own_list), "places in *their* list"),
    "generator left out": (lambda *a: draw(*a, take=global_random), "hand `generator` to the function"),
    "a mask": (lambda m, *a: (m >= 0, m == BACKGROUND), "must be a list of indices"),
    "one tensor": (lambda *a: torch.cat(draw(*a)), "must be two tensors"),
    "both negatives and positives swapped": (lambda *a: draw(*a)[::-1], "positives are not positives"),
}


@pytest.mark.parametrize("wrong, hint", WRONG_SAMPLE.values(), ids=list(WRONG_SAMPLE))
def test_a_wrong_sample_fails_with_its_hint(wrong, hint):
    fails_with(check_sample, wrong, hint)


@pytest.mark.parametrize("seed", range(6))
def test_what_the_solutions_build_is_what_the_package_has(seed):
    my, g = solutions("03"), torch.Generator().manual_seed(seed)
    iou = (torch.rand(seed, 40, generator=g) * 20).floor() / 20  # many ties; seed 0: no object
    for claim in (False, True):
        matches = my["my_match"](iou, 0.7, 0.3, claim)
        assert torch.equal(matches, match(iou, 0.7, 0.3, claim))
        mine = my["my_sample"](matches, 12, 0.5, torch.Generator().manual_seed(seed))
        again = sample(matches, 12, 0.5, torch.Generator().manual_seed(seed))
        assert [len(part) for part in mine] == [len(part) for part in again]
        if len(again[0]) < int((matches >= 0).sum()):  # both draw the same order only where both draw
            assert mine[0].sort().values.tolist() == again[0].tolist()


def test_the_picture_has_a_dot_for_each_anchor_and_a_box_for_each_positive():
    axes = Figure().subplots()
    anchors = torch.tensor([[0.0, 0, 10, 4], [2, 2, 6, 8], [30, 5, 40, 9], [-4, 0, 4, 4]])
    draw_labels(axes, torch.rand(3, 20, 40), anchors, torch.tensor([BACKGROUND, 1, IGNORED, 0]))
    dots = [line.get_xydata().tolist() for line in axes.lines]  # background, ignored, positive: the last is on top
    assert dots == [[[5, 2]], [[35, 7]], [[4, 5], [0, 2]]]
    assert axes.lines[2].get_color() == POSITIVE_COLOUR
    assert [patch.get_xy() for patch in axes.patches] == [(2, 2), (-4, 0)]
    assert axes.get_xlim() == (0, 40) and axes.get_ylim() == (20, 0)
