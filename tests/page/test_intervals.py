"""Means, differences and intervals equal slow formulas, and cover what they should."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from normzoo.page.statistics import Difference, Mean, difference, mean_of, pairs_needed

DRAWS = [(count, seed) for count in (2, 3, 5, 10) for seed in range(5)]


def density(t: np.ndarray, degrees: int) -> np.ndarray:
    """Student's distribution."""
    factor = math.gamma((degrees + 1) / 2) / math.sqrt(degrees * math.pi) / math.gamma(degrees / 2)
    return np.asarray(factor * (1 + t**2 / degrees) ** (-(degrees + 1) / 2))


def probability(t: float, degrees: int) -> float:
    """Of a value below t >= 0, by the trapezoidal rule."""
    grid = np.linspace(0, t, 20_001)
    values = density(grid, degrees)
    return 0.5 + float(((values[1:] + values[:-1]) / 2 * np.diff(grid)).sum())


def quantile(level: float, degrees: int) -> float:
    """By bisection."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle, degrees) < level else (low, middle)
    return low


def slow_interval(values: Sequence[float]) -> tuple[float, float, float]:
    n = len(values)
    mean = sum(values) / n
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = quantile(0.975, n - 1) * spread / math.sqrt(n)
    return mean, mean - half, mean + half


def close(a: Sequence[float | None], b: Sequence[float]) -> bool:
    return all(x is not None and math.isclose(x, y, rel_tol=1e-5, abs_tol=1e-8) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("count,seed", DRAWS)
def test_an_interval_equals_the_slow_formula(count: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(0.9, 0.03, count).tolist()
    found = mean_of(values)
    assert found is not None
    assert close((found.mean, found.low, found.high), slow_interval(values))


@pytest.mark.parametrize("count,seed", DRAWS)
def test_a_difference_is_that_of_pairs(count: int, seed: int) -> None:
    """Seeds that only one of both has do not count, and the order of the seeds makes no difference."""
    random = np.random.default_rng(seed)
    a, b = (dict(enumerate(random.normal(size=count + 2).tolist())) for _ in range(2))
    del a[0], b[1]
    pairs = [a[s] - b[s] for s in range(2, count + 2)]
    found = difference(a, dict(reversed(b.items())))
    assert found is not None
    assert found.pairs == count
    assert close((found.mean, found.low, found.high), slow_interval(pairs))
    mean, spread = np.mean(pairs), np.std(pairs, ddof=1)
    p = 2 * (1 - probability(abs(mean) / spread * math.sqrt(count), count - 1))
    assert found.p == pytest.approx(p, abs=1e-5)
    other = difference(b, a)
    assert other is not None
    assert close((other.mean, other.low, other.high), (-found.mean, -found.high, -found.low))
    assert other.needed == found.needed


@pytest.mark.parametrize(
    "values,mean",
    [
        ([], None),
        ([0.5], Mean(0.5)),
        ([0.5, 0.5, 0.5], Mean(0.5)),
        ([0.0, 0.0], Mean(0.0)),
        ([float(np.float32(0.9)), 0.9], Mean((float(np.float32(0.9)) + 0.9) / 2)),
    ],
)
def test_values_that_do_not_vary_have_no_interval(values: list[float], mean: Mean | None) -> None:
    assert mean_of(values) == mean


@pytest.mark.parametrize(
    "a,b,expected",
    [
        ({}, {}, None),
        ({0: 1.0}, {1: 1.0}, None),
        ({0: 1.0}, {0: 0.5}, Difference(0.5, pairs=1)),
        ({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}, Difference(0.0, pairs=2)),
        ({0: 1.0, 1: 2.0, 2: 9.0}, {0: 0.5, 1: 1.5}, Difference(0.5, pairs=2)),
    ],
)
def test_pairs_that_do_not_vary_have_no_interval(
    a: dict[int, float], b: dict[int, float], expected: Difference | None
) -> None:
    assert difference(a, b) == expected


def test_accuracies_of_float32_that_differ_by_one_image_do_not_vary() -> None:
    right = (351, 340, 12)
    more = {seed: float(np.float32((count + 1) / 360)) for seed, count in enumerate(right)}
    found = difference(more, {seed: float(np.float32(count / 360)) for seed, count in enumerate(right)})
    assert found is not None
    assert (found.low, found.high, found.p, found.needed) == (None, None, None, None)
    assert found.mean == pytest.approx(1 / 360, abs=1e-7)


def test_a_bound_ends_an_interval() -> None:
    found = mean_of([0.9, 1.0], within=(0, 1))
    assert found == Mean(0.95, pytest.approx(0.95 - 0.05 * quantile(0.975, 1)), 1)


def test_intervals_cover_the_mean_in_95_percent() -> None:
    draws = np.random.default_rng(0).normal(size=(1000, 3))
    found = [mean_of(values) for values in draws.tolist()]
    covered = np.mean([one is not None and one.low <= 0 <= one.high for one in found])
    assert 0.93 < covered < 0.97


def test_the_needed_pairs_show_a_difference_with_a_chance_of_80_percent() -> None:
    differences = [0.2, 1.1, 2.3]
    needed = pairs_needed(differences)
    assert needed is not None
    draws = np.random.default_rng(0).normal(np.mean(differences), np.std(differences, ddof=1), (4000, needed))
    power = float(np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05))
    assert 0.75 < power < 0.9
    assert pairs_needed([-one for one in differences]) == needed
    assert pairs_needed([-1.0, 1.01, 0.0]) is None
