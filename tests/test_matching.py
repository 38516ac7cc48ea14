"""Who answers for which ground truth, and who is shown to the loss."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_scratch.matching import BACKGROUND, IGNORED, match, match_boxes, sample


def test_thresholds():
    # at least 0.7 is positive, below 0.3 is background, between them nothing is taught
    iou = torch.tensor([[0.7, 0.6999, 0.3, 0.2999, 0.0]], dtype=torch.float64)
    assert match(iou, 0.7, 0.3).tolist() == [0, IGNORED, IGNORED, BACKGROUND, BACKGROUND]


def test_best_truth_wins():
    iou = torch.tensor([[0.8, 0.5, 0.1], [0.9, 0.6, 0.2], [0.1, 0.55, 0.75]])
    assert match(iou, 0.5, 0.5).tolist() == [1, 1, 2]


def test_low_quality_claims_all_candidates_that_are_tied():
    iou = torch.tensor([[0.2, 0.4, 0.4, 0.1]])
    assert match(iou, 0.7, 0.3, allow_low_quality=True).tolist() == [BACKGROUND, 0, 0, BACKGROUND]
    assert match(iou, 0.7, 0.3, allow_low_quality=False).tolist() == [BACKGROUND, IGNORED, IGNORED, BACKGROUND]


def test_a_truth_that_nothing_overlaps_claims_nothing():
    # Its best IoU is 0, every candidate is "tied" at that best, and a plain comparison makes them all positive.
    iou = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.4]])
    assert match(iou, 0.7, 0.3, allow_low_quality=True).tolist() == [BACKGROUND, BACKGROUND, 1]


def test_a_claimed_candidate_keeps_its_own_best_truth():
    # Truth 0 is best served by candidate 0, but candidate 0 overlaps truth 1 more: it answers for truth 1.
    iou = torch.tensor([[0.5, 0.1, 0.0], [0.6, 0.2, 0.05]])
    assert match(iou, 0.7, 0.3, allow_low_quality=True).tolist() == [1, BACKGROUND, BACKGROUND]


@pytest.mark.parametrize("low_quality", [False, True])
def test_no_truth_and_no_candidates(low_quality):
    assert match(torch.zeros(0, 3), 0.7, 0.3, low_quality).tolist() == [BACKGROUND] * 3
    assert match(torch.zeros(2, 0), 0.7, 0.3, low_quality).shape == (0,)
    assert match(torch.zeros(0, 0), 0.7, 0.3, low_quality).dtype == torch.int64


@given(st.integers(0, 5), st.integers(1, 30), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_low_quality_positive_is_not_made_background_again(G, A, seed):
    # Detectron labelled the background after the low-quality matches and could undo them.
    iou = torch.rand(G, A, generator=torch.Generator().manual_seed(seed)).mul(20).floor() / 20  # many ties
    matches = match(iou, 0.7, 0.3, allow_low_quality=True)
    assert matches.shape == (A,) and matches.min() >= IGNORED and matches.max() < max(G, 1)
    for truth in range(G):
        best = iou[truth].max()
        if best > 0:
            assert (matches[iou[truth] == best] >= 0).all()
    positive, negative = sample(matches, 8, 0.5, torch.Generator().manual_seed(seed))
    assert not set(positive.tolist()) & set(negative.tolist())


BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [20, 20, 30, 30], [21, 21, 29, 29], [50, 50, 60, 60]])


def test_crowds_are_never_positives_and_hide_what_lies_in_them():
    # The crowd covers boxes 2 and 3; it stands between the two objects, so that indices must be mapped back.
    truth = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [20, 0, 30, 10]])
    target = {"boxes": truth, "iscrowd": torch.tensor([0, 1, 0])}
    assert match_boxes(BOXES, target, 0.5, 0.5).tolist() == [0, 2, IGNORED, IGNORED, BACKGROUND]
    assert match_boxes(BOXES, {"boxes": truth}, 0.5, 0.5).tolist() == [0, 2, 1, 1, BACKGROUND]


def test_a_box_partly_in_a_crowd_is_background():
    crowd = {"boxes": torch.tensor([[20.0, 0, 26, 10]]), "iscrowd": torch.tensor([1])}  # holds 0.6 of box 1
    assert match_boxes(BOXES, crowd, 0.7, 0.3).tolist() == [BACKGROUND] * 5
    assert match_boxes(BOXES, crowd, 0.7, 0.3, crowd_ioa=0.5).tolist()[1] == IGNORED


def test_an_object_inside_a_crowd_still_has_its_positives():
    target = {"boxes": torch.tensor([[20.0, 20, 30, 30], [0, 0, 99, 99]]), "iscrowd": torch.tensor([0, 1])}
    assert match_boxes(BOXES, target, 0.7, 0.3, allow_low_quality=True).tolist() == [
        IGNORED,
        IGNORED,
        0,
        IGNORED,
        IGNORED,
    ]


@pytest.mark.parametrize("outside", [[200.0, 200, 210, 210], [5, 5, 5, 5]])
def test_truth_outside_or_degenerate_gives_no_positive(outside):
    target = {"boxes": torch.tensor([outside])}
    assert (match_boxes(BOXES, target, 0.7, 0.3, allow_low_quality=True) == BACKGROUND).all()


def test_images_without_objects():
    empty = {"boxes": torch.zeros(0, 4), "iscrowd": torch.zeros(0, dtype=torch.int64)}
    assert match_boxes(BOXES, empty, 0.7, 0.3, True).tolist() == [BACKGROUND] * 5
    assert match_boxes(BOXES[:0], empty, 0.7, 0.3, True).shape == (0,)


@given(st.lists(st.sampled_from([-2, -1, 0, 1, 2]), max_size=60), st.integers(1, 40), st.sampled_from([0.25, 0.5, 1.0]))
@settings(max_examples=100, deadline=None)
def test_sampling(values, size, fraction):
    matches = torch.tensor(values, dtype=torch.int64)
    positive, negative = sample(matches, size, fraction, torch.Generator().manual_seed(1))
    available, background = int((matches >= 0).sum()), int((matches == -1).sum())
    assert len(positive) == min(available, int(size * fraction))
    assert len(negative) == min(background, size - len(positive))  # negatives fill what positives leave
    assert (matches[positive] >= 0).all() and (matches[negative] == BACKGROUND).all()  # never an ignored one
    assert len(set(positive.tolist())) == len(positive)  # with replacement would repeat some
    assert len(set(negative.tolist())) == len(negative)


def test_a_seed_fixes_the_sample_and_all_candidates_get_their_turn():
    matches = torch.tensor([BACKGROUND] * 30 + [0] * 20)
    draw = [sample(matches, 8, 0.5, torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
    assert torch.equal(draw[0][0], draw[1][0]) and torch.equal(draw[0][1], draw[1][1])
    assert not torch.equal(draw[0][1], draw[2][1])
    seen = set()
    for seed in range(60):
        seen |= set(torch.cat(sample(matches, 8, 0.5, torch.Generator().manual_seed(seed))).tolist())
    assert seen == set(range(50))
