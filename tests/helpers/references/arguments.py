"""Argument -> values out of its range, for a layer of 8 channels."""

import math
from typing import Any

NO_NUMBER: tuple[Any, ...] = (math.nan, True, "3", None, [1.0])
NO_POSITIVE: tuple[Any, ...] = (0.0, -1e-5, -1, math.inf, -math.inf, *NO_NUMBER)
NO_BOUND: tuple[Any, ...] = (math.inf, -math.inf, *NO_NUMBER)  # beside those below the least
NO_INTEGER: tuple[Any, ...] = (2.5, 4.0, math.inf, *NO_NUMBER)

OUT_OF_RANGE: dict[str, tuple[Any, ...]] = {
    "num_features": (0, -1, "64", *NO_INTEGER),
    "eps": ("1e-5", -1e-5, -1, math.inf, -math.inf, *NO_NUMBER),
    "channel_dim": (0, "1", *NO_INTEGER),
    "dim": ("0", *NO_INTEGER),
    "momentum": (-0.1, 1.5, math.inf, math.nan, True, "0.1"),
    "num_heads": (0, -2, 3, 16, 2.0, 2.5, math.inf, math.nan, True, "2"),
    "scale_groups": (-1, 3, 16, *NO_INTEGER),
    "warmup_steps": (-1, *NO_INTEGER),
    "init_values": NO_POSITIVE,
    "window_size": (0, -3, 4, *NO_INTEGER),
    "slope": NO_POSITIVE,
    "base_gain": NO_POSITIVE,
    "num_groups": (0, -2, 3, 16, 2.0, 2.5, math.inf, math.nan, True, "2"),
    "ghost_size": (0, -4, *NO_INTEGER),
    "r_max": (0.5, *NO_BOUND),
    "d_max": (-1.0, *NO_BOUND),
    "warmup": (-1, 10**9, *NO_INTEGER),
    "r_steps": (-1, 10, *NO_INTEGER),
    "d_steps": (-1, 10, *NO_INTEGER),
    "alpha": NO_POSITIVE,
    "beta": NO_POSITIVE,
    "size": (0, -5, *NO_INTEGER),
    "k": NO_POSITIVE,
    "p": (0.0, 0.5, -2.0, *NO_NUMBER),
    "num_splits": (1, 0, -2, *NO_INTEGER),
    "n_mu": (-0.5, *NO_BOUND),
    "n_sigma": (0.9, *NO_BOUND),
    "r_mu": (-0.1, *NO_BOUND),
    "r_sigma": (-0.1, *NO_BOUND),
    "buffer_size": (0, -2, *NO_INTEGER),
    "r_after": (-1, *NO_INTEGER),
    "forward_decay": (-0.1, 1.0, *NO_BOUND),
    "backward_decay": (-0.1, 1.0, *NO_BOUND),
    "n_power_iterations": (0, -1, *NO_INTEGER),
    "gamma": NO_POSITIVE,
    "iterations": (0, -1, *NO_INTEGER),
}
