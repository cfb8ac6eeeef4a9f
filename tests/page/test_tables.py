"""Tables whose rows change, records of one step, and which steps are kept."""

import numpy as np
import pytest

from normzoo.page.tables import Names, Series, joined, spread

NAN = np.nan


def names(layers: str, metrics: str = "m") -> Names:
    return Names(tuple(layers.split()), tuple(metrics.split()), tuple(metrics.split()))


@pytest.mark.parametrize(
    "first,second,both",
    [
        ("a b c", "a b c", "a b c"),
        ("a b", "b a", "a b"),
        ("a c", "a b c", "a b c"),
        ("b c", "a b", "a b c"),
        ("a b", "x y", "a b x y"),
        ("", "x", "x"),
        ("x", "", "x"),
    ],
)
def test_names_are_joined_in_their_order(first: str, second: str, both: str) -> None:
    assert " ".join(joined(first.split(), second.split())) == both


@pytest.mark.parametrize("count", [0, 1, 2, 3, 199, 200, 201, 202, 399, 1000, 12_345])
@pytest.mark.parametrize("most", [3, 200])
def test_steps_are_spread_evenly_with_the_first_and_the_last(count: int, most: int) -> None:
    kept = spread(count, most, [1] * count)
    assert len(kept) == min(count, most)
    assert kept == sorted(set(kept))
    if count:
        assert (kept[0], kept[-1]) == (0, count - 1)
        gaps = np.diff(kept)
        assert count <= most or gaps.max() <= 2 * count / (most - 1) + 1


def test_of_the_steps_that_are_left_out_none_has_more_values() -> None:
    """Distances of an evaluation are in one sample of many."""
    weights = [1] * 1000
    for step in range(30, 1000, 100):
        weights[step] = 2
    assert set(range(30, 1000, 100)) <= set(spread(1000, 200, weights))


def test_a_value_replaces_nan_and_nan_replaces_no_value() -> None:
    series = Series()
    series.add(5, names("a b"), np.array([[1], [NAN]], np.float32))
    series.add(5, names("a b"), np.array([[NAN], [2]], np.float32))
    series.add(5, names("b"), np.array([[3]], np.float32))
    assert series.table().values.tolist() == [[[1], [3]]]


def test_rows_and_columns_that_change_are_one_table() -> None:
    series = Series()
    series.add(0, names("a c", "x"), np.array([[1], [3]], np.float32))
    series.add(1, names("a b c", "x y"), np.array([[1, 10], [2, 20], [3, 30]], np.float32))
    table = series.table()
    assert table.names.layers == ("a", "b", "c")
    assert table.names.metrics == ("x", "y")
    np.testing.assert_array_equal(table.values, [[[1, NAN], [NAN, NAN], [3, NAN]], [[1, 10], [2, 20], [3, 30]]])
