"""A run as few bytes: numbers with as many bits as a chart shows, which text would take three times the space for."""

import gzip
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normzoo.page.json_text import json_text

DROPPED = 10
"""Bits of a float32's mantissa that are left out: 13 remain, four digits."""
DROPPED_OF_MANY = 13
MANY = ("histograms", "channels")
"""The parts of a run with most numbers: three digits."""
PLANES = 3


def packed(run: Mapping[str, Any]) -> bytes:
    """A run, compressed: the length of its JSON (4 bytes), the JSON, and the arrays that it refers to.

    An array is `{"shape", "at", "drop"}` in the JSON. Its numbers, along the steps, are the differences of their bits
    without the last `drop` ones, with the sign last, as three planes of bytes that begin at byte `at` behind the JSON.

    Args:
        run: as `run_data` returns it.
    """
    arrays = bytearray()
    content = {key: placed(value, DROPPED_OF_MANY if key in MANY else DROPPED, arrays) for key, value in run.items()}
    text = json_text(content).encode()
    return gzip.compress(struct.pack("<I", len(text)) + text + arrays, compresslevel=9, mtime=0)


def placed(value: Any, drop: int, arrays: bytearray) -> Any:
    """Nested data, whose arrays are appended to others and replaced by their places."""
    if isinstance(value, np.ndarray):
        place = {"shape": list(value.shape), "at": len(arrays), "drop": drop}
        arrays += planes(value, drop)
        return place
    if isinstance(value, Mapping):
        return {key: placed(one, drop, arrays) for key, one in value.items()}
    return value


def planes(values: NDArray[Any], drop: int) -> bytes:
    """The numbers of an array (S, ...) as bytes."""
    plain = np.ascontiguousarray(np.where(np.isnan(values), np.nan, values), np.float32)  # one NaN of many
    bits = (plain.view(np.int32) + (1 << drop - 1)) >> drop
    steps_last = np.ascontiguousarray(np.moveaxis(bits, 0, -1))
    differences = np.diff(steps_last, axis=-1, prepend=np.int32(0))
    unsigned = ((differences << 1) ^ (differences >> 31)).view(np.uint32)
    return b"".join((unsigned >> 8 * i).astype(np.uint8).tobytes() for i in range(PLANES))
