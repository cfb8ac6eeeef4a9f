"""JSON with few digits, which both Python and JavaScript read back."""

import json
from typing import Any

import numpy as np
import pytest

from normzoo.page.json_text import json_text


def test_numbers_keep_five_digits_over_the_whole_range_of_float32() -> None:
    values = (np.random.default_rng(0).normal(size=1000) * 10.0 ** np.linspace(-37, 37, 1000)).astype(np.float32)
    np.testing.assert_allclose(json.loads(json_text(values)), values, rtol=5e-5)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, 1e-45, 3.4e38, 123456.0, np.inf, -np.inf, 0.1, 1e5])
def test_a_number_is_the_same_alone_and_in_an_array(value: float) -> None:
    alone, within = json.loads(json_text(value)), json.loads(json_text(np.array([[value]])))[0][0]
    assert alone == within == pytest.approx(value, rel=5e-5)


def test_nan_is_null_and_infinity_a_number() -> None:
    assert json_text(np.array([np.nan, np.inf, -np.inf])) == "[null,1e999,-1e999]"
    assert json_text([float("nan"), float("inf"), -float("inf")]) == "[null,1e999,-1e999]"


@pytest.mark.parametrize("shape", [(0,), (0, 3, 2), (2, 0, 2), (1, 1, 1), (3, 2)])
def test_arrays_keep_their_shape(shape: tuple[int, ...]) -> None:
    assert json.loads(json_text(np.zeros(shape))) == np.zeros(shape).tolist()


@pytest.mark.parametrize(
    "name", ["nan", "inf", 'a "quoted" name', "%s %d", "\u2028</script>", "net.0/1", "ünïcode ☃", ""]
)
def test_names_are_kept(name: str) -> None:
    data: Any = {name: [name, 3, None, True], "steps": [1, 2]}
    assert json.loads(json_text(data)) == data
