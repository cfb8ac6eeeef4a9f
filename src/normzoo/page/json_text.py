"""JSON of plain data and arrays, with few digits, in which NaN is null and infinity is 1e999."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIGITS = 5
INFINITY = "1e999"  # valid JSON, which JavaScript and Python read as infinity


def json_text(value: Any, digits: int = DIGITS) -> str:
    """The JSON of nested mappings, lists, arrays, strings and numbers.

    >>> import numpy as np
    >>> json_text({"steps": [0, 10], "values": np.array([[1 / 3, np.nan], [-np.inf, 12.0]])})
    '{"steps":[0,10],"values":[[0.33333,null],[-1e999,12]]}'

    Args:
        value: the data.
        digits: significant digits of numbers.
    """
    return "".join(parts(value, digits))


def parts(value: Any, digits: int) -> Iterator[str]:
    """The parts of the text."""
    if isinstance(value, np.ndarray):
        yield array_text(value, digits)
    elif isinstance(value, float):
        yield number_text(value, digits)
    elif isinstance(value, Mapping):
        yield "{"
        for i, (key, one) in enumerate(value.items()):
            yield f"{',' if i else ''}{json.dumps(str(key))}:"
            yield from parts(one, digits)
        yield "}"
    elif isinstance(value, list | tuple):
        yield "["
        for i, one in enumerate(value):
            yield "," if i else ""
            yield from parts(one, digits)
        yield "]"
    else:
        yield json.dumps(value)


def number_text(value: float, digits: int) -> str:
    """A number; null for NaN."""
    if math.isfinite(value):
        return f"{value:.{digits}g}"
    return "null" if math.isnan(value) else f"{'-' if value < 0 else ''}{INFINITY}"


def array_text(array: NDArray[Any], digits: int) -> str:
    """An array as nested lists; one format string for all numbers is five times as fast as one for each."""
    template = f"%.{digits}g"
    for size in reversed(array.shape):
        template = f"[{','.join([template] * size)}]"
    text = template % tuple(array.ravel().tolist())
    return text.replace("nan", "null").replace("inf", INFINITY)
