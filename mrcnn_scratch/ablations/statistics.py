"""What the seeds say of a difference: its mean, a t-interval, a bootstrap over instances, and one of three words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .plan import EQUAL, MORE

REPRODUCED, EQUIVALENT, NOT_RESOLVED = "reproduced", "equivalent", "not resolved"


@dataclass(frozen=True)
class Interval:
    """A mean and its two-sided 95 % interval; of one value there is none: both ends are None."""

    mean: float
    low: float | None
    high: float | None


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's interval of a mean: for n = 5 it is mean +- 2.776 sd / sqrt(5).

    1, 2, 3: mean 2, sd 1, t 4.303 of 2 degrees of freedom, so 2 +- 2.484.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    values = np.asarray(values, dtype=float)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"an interval of {values.tolist()}: give one finite value or more")
    mean = float(values.mean())
    if values.size == 1:
        return Interval(mean, None, None)
    half = float(stats.t.ppf(0.5 + level / 2, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size))
    return Interval(mean, mean - half, mean + half)


def bootstrap_interval(differences: np.ndarray, seed: int = 0, times: int = 2000, level: float = 0.95) -> Interval:
    """Percentile interval of a mean when the instances are drawn anew: how much hangs on this validation set.

    Args:
        differences: (instances,), each the mean over the seeds of what arm a earns on it, minus arm b.
        seed: of the draws.
        times: draws.
    """
    differences = np.asarray(differences, dtype=float)
    draws = np.random.default_rng(seed).integers(len(differences), size=(times, len(differences)))
    low, high = np.quantile(differences[draws].mean(axis=1), [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(differences.mean()), float(low), float(high))


def verdict(interval: Interval, claim: str, margin: float = 0.0) -> str:
    """One of three words, by a rule that was fixed before the runs.

    "reproduced": more was claimed, and the whole interval is above 0. "equivalent": equality was claimed, and the
    whole interval is within the margin on either side of 0. Anything else, one seed included: "not resolved".
    """
    if interval.low is None:
        return NOT_RESOLVED
    if claim == MORE and interval.low > 0:
        return REPRODUCED
    if claim == EQUAL and -margin < interval.low and interval.high < margin:
        return EQUIVALENT
    return NOT_RESOLVED
