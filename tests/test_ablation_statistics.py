"""Intervals, bootstrap and verdicts against numbers worked out by hand, and against scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from mrcnn_scratch.ablations.measures import STRICT, credit_of, credits, fractions
from mrcnn_scratch.ablations.plan import EQUAL, MORE, NONE
from mrcnn_scratch.ablations.statistics import Interval, bootstrap_interval, t_interval, verdict


def test_t_interval_by_hand():
    # 1, 2, 3: mean 2, sd 1; t of 2 degrees of freedom at 97.5 % is 4.3027, and 4.3027 / sqrt(3) = 2.4841
    assert t_interval([1, 2, 3]) == Interval(
        2.0, pytest.approx(2 - 2.48414, abs=1e-5), pytest.approx(4.48414, abs=1e-5)
    )
    # five seeds: 2.776 sd / sqrt(5), as the report says; 0, 0, 0, 0, 5 has mean 1, sd sqrt(5)
    five = t_interval([0, 0, 0, 0, 5])
    assert five.high - five.mean == pytest.approx(2.7764, abs=1e-4)


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_t_interval_is_scipys_paired_test(n):
    a, b = np.random.default_rng(n).normal(size=(2, n))
    found, theirs = t_interval(a - b), stats.ttest_rel(a, b).confidence_interval()
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)


def test_one_seed_has_no_interval():
    assert t_interval([0.3]) == Interval(0.3, None, None)
    for wrong in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="finite"):
            t_interval(wrong)


def test_bootstrap_covers_the_mean_as_scipys_does():
    values = np.random.default_rng(0).normal(0.2, 1, 300)
    found = bootstrap_interval(values, times=4000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", random_state=1)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.01)
    # of a mean of n values the interval is about 2 x 1.96 sd / sqrt(n) wide
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(300), rel=0.08)
    assert bootstrap_interval(np.full(9, 0.25)) == Interval(0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    ("low", "high", "claim", "margin", "word"),
    [
        (0.01, 0.2, MORE, 0.0, "reproduced"),
        (0.0, 0.2, MORE, 0.0, "not resolved"),
        (-0.2, -0.1, MORE, 0.0, "not resolved"),  # the other way round is no reproduction
        (-0.01, 0.02, EQUAL, 0.03, "equivalent"),
        (-0.01, 0.03, EQUAL, 0.03, "not resolved"),  # touches the margin
        (-0.04, 0.01, EQUAL, 0.03, "not resolved"),
        (0.01, 0.2, EQUAL, 0.3, "equivalent"),  # different from 0, and yet within the margin
        (0.1, 0.2, NONE, 0.0, "not resolved"),
        (None, None, MORE, 0.0, "not resolved"),
        (None, None, EQUAL, 0.5, "not resolved"),
    ],
)
def test_verdicts(low, high, claim, margin, word):
    middle = 0.0 if low is None else (low + high) / 2
    assert verdict(Interval(middle, low, high), claim, margin) == word


def test_fractions_by_hand():
    # .60 reaches .50 .55 .60; .80 seven; .96 all ten; .40 none
    found = fractions([0.6, 0.8, 0.96, 0.4], "mask")
    assert found["mask AP*"] == pytest.approx(20 / 40)
    assert found["mask @.50"] == found["mask @.60"] == 3 / 4
    assert found["mask @.65"] == found["mask @.80"] == 2 / 4 and found["mask @.85"] == 1 / 4
    # from .70 on: .70 .75 .80 half, .85 .90 .95 a quarter; below: three quarters thrice, then half
    strict, lenient = (3 * 0.5 + 3 * 0.25) / 6, (3 * 0.75 + 0.5) / 4
    assert found[f"mask {STRICT}"] == pytest.approx(strict - lenient)
    assert fractions([], "mask") == {}


def test_a_threshold_is_reached_by_its_own_value():
    assert credits([0.1 + 0.2 + 0.3])[0].sum() == 3  # 0.6000000000000001
    assert credits([1.8 / 3])[0].sum() == credits([0.6 - 1e-12])[0].sum() == 3
    assert credits([0.5 - 1e-6])[0].sum() == 0


def test_what_instances_add_is_what_the_measure_is():
    values = np.random.default_rng(3).uniform(0.3, 1, 50)
    for name, value in fractions(values, "keypoints").items():
        assert credit_of(values, name).mean() == pytest.approx(value, abs=1e-12)
    assert credit_of(values, "keypoints APs") is None and credit_of(values, "parameters") is None
