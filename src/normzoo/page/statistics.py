"""Means over seeds, and differences of pairs with the same seed, each with its interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL, POWER = 0.95, 0.8
MOST_PAIRS = 100
ROUNDING = 1e-6
"""Of float32, relative."""


@dataclass(frozen=True)
class Mean:
    """A mean and its 95 % interval.

    Args:
        mean: of the values.
        low: the lower end; None where the values do not tell how much they vary.
        high: the upper end.
    """

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference(Mean):
    """The mean of the differences of pairs.

    Args:
        pairs: how many there are.
        p: of Student's paired t test; None where there is no interval.
        needed: the pairs for which a difference like this one would show with a chance of 80 %; None for more than
            100, or where there is no interval.
    """

    pairs: int = 0
    p: float | None = None
    needed: int | None = None


def mean_of(
    values: Sequence[float], scale: float | None = None, within: tuple[float, float] | None = None
) -> Mean | None:
    """The mean of values, one for each seed, and Student's t interval; None if there is no value.

    `mean +- t(0.975, n - 1) s / sqrt(n)`

    Of 4,000 draws of n = 3, 5 and 10 normal values, it covers the mean in 95.3, 95.5 and 95.2 %; the percentile
    bootstrap in 75, 84 and 90 %, BCa in 73, 84 and 90 %. Of differences of two accuracies on 360 images, it covers
    95.5, 95.0 and 95.2 %; of exponential values, which are skewed, 88 to 89 %, more than both bootstraps.

    Args:
        values: of the seeds.
        scale: of what they were computed from, whose rounding is no variation; None for their own.
        within: bounds of the mean, at which the interval ends.
    """
    if not values:
        return None
    rounding = ROUNDING * (max(map(abs, values)) if scale is None else scale)
    if max(values) - min(values) <= rounding:
        return Mean(math.fsum(values) / len(values))
    from scipy import stats  # takes a second to import

    low, high = map(float, stats.ttest_1samp(values, 0.0).confidence_interval(LEVEL))
    least, most = within or (-math.inf, math.inf)
    return Mean(math.fsum(values) / len(values), max(low, least), min(high, most))


def difference(values: Mapping[int, float], others: Mapping[int, float]) -> Difference | None:
    """The mean of `values - others` over the seeds that both have, and Student's paired t interval; None without pairs.

    Args:
        values: seed -> value.
        others: seed -> value of what it is compared with.
    """
    seeds = [seed for seed in values if seed in others]
    differences = [values[seed] - others[seed] for seed in seeds]
    found = mean_of(differences, max(abs(one[seed]) for one in (values, others) for seed in seeds) if seeds else None)
    if found is None:
        return None
    if found.low is None:
        return Difference(found.mean, pairs=len(seeds))
    from scipy import stats

    p = stats.ttest_rel([values[seed] for seed in seeds], [others[seed] for seed in seeds]).pvalue
    return Difference(found.mean, found.low, found.high, len(seeds), float(p), pairs_needed(differences))


def pairs_needed(differences: Sequence[float]) -> int | None:
    """The pairs for which a difference with this mean and spread shows with a chance of 80 %; None for more than 100.

    `n = ((t(0.975, n - 1) + t(0.8, n - 1)) s / mean)^2`
    """
    import numpy as np
    from scipy import stats

    pairs = np.arange(2, MOST_PAIRS + 1)
    quantiles = stats.t.ppf((1 + LEVEL) / 2, pairs - 1) + stats.t.ppf(POWER, pairs - 1)
    enough = quantiles * np.std(differences, ddof=1) <= abs(np.mean(differences)) * np.sqrt(pairs)
    return int(pairs[enough.argmax()]) if enough.any() else None
