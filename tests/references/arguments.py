"""Argument -> values out of its range, for a layer of 8 channels."""

import math
from typing import Any

OUT_OF_RANGE: dict[str, tuple[Any, ...]] = {
    "num_features": (0, -1, True, 2.5, "64"),
    "eps": (0.0, -1e-5, math.nan),
    "momentum": (-0.1, 1.5, math.nan),
    "num_groups": (0, -2, 3, 16),
    "ghost_size": (0, -4),
    "r_max": (0.5,),
    "d_max": (-1.0,),
    "warmup": (-1, 10**9),
    "r_steps": (-1, 10),
    "d_steps": (-1, 10),
    "alpha": (0.0, -1.0),
}
