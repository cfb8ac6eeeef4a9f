"""A comparison as a report holds it, made up: norms x learning rates x seeds, and the runs that it compares."""

import math
from collections.abc import Collection, Mapping
from statistics import mean, stdev
from typing import Any

from page_runs import Run, page_run

Arm = dict[str, Any]
Cell = tuple[str, float, int]
"""Norm, learning rate, seed."""

QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Of Student's t for 95 %, by the number of values."""
BEST_RATE = {"BatchNorm": 1.0, "LayerNorm": 0.1, "NoNorm": 0.1}


def compared(
    norms: Collection[str] = ("BatchNorm", "LayerNorm", "NoNorm"),
    rates: Collection[float] = (0.01, 0.1, 1.0),
    seeds: Collection[int] = (0, 1, 2),
    diverged: Mapping[Cell, int] | None = None,
    waiting: Collection[Cell] = (),
    **of_runs: Any,
) -> tuple[list[Run], dict[str, Any]]:
    """The runs and their comparison.

    Args:
        norms: names of the norms; the first is the baseline.
        rates: learning rates.
        seeds: of each arm.
        diverged: cells without a result, and the step at which they diverged.
        waiting: cells that have not started: there are no runs of them.
        of_runs: passed to `page_run`.
    """
    diverged = diverged or {}
    cells = [(norm, rate, seed) for norm in norms for rate in rates for seed in seeds]
    names = {cell: f"{i:03d}-{cell[0]}-{cell[2]}" for i, cell in enumerate(cells)}
    runs = [run_of(cell, names[cell], diverged.get(cell), **of_runs) for cell in cells if cell not in waiting]
    arms = [arm_of(norm, rate, seeds, names, diverged, waiting) for norm in norms for rate in rates]
    for norm in norms:
        mine = [arm for arm in arms if arm["norm"] == norm and arm["mean"] is not None]
        if mine:
            max(mine, key=lambda arm: (-len(arm["failures"]), arm["mean"]))["best"] = True
    baseline = next(iter(norms))
    for arm in arms:
        if arm["norm"] != baseline:
            arm["difference"] = difference(arm, next(one for one in arms if one["settings"] == of_baseline(arm, arms)))
    return runs, {
        "version": 1, "metric": "test/accuracy", "mode": "max", "share": True, "chosen_by": "val/accuracy",
        "baseline": baseline, "target": 0.9, "target_metric": "val/accuracy",
        "axes": [axis for axis, values in (("norm", norms), ("model.optimizer.lr", rates)) if len(values) > 1],
        "seeds": list(seeds), "arms": arms,
        "cells": {"planned": len(cells), "finished": len(cells) - len(diverged) - len(waiting), "failed": 0,
                  "diverged": len(diverged), "running": 0, "waiting": len(waiting)},
        "words": ["LayerNorm is 1.2 points (95 % interval 0.3 to 2.1, 3 pairs) below BatchNorm.",
                  "The best rate of BatchNorm, 1, is the largest tried: a larger one may be better."],
    }  # fmt: skip


def of_baseline(arm: Arm, arms: list[Arm]) -> dict[str, Any]:
    """The settings of an arm, with the norm of the baseline."""
    return {**arm["settings"], "norm": arms[0]["norm"]}


def accuracy(norm: str, rate: float, seed: int) -> float:
    """Highest at the best rate of the norm."""
    away = abs(math.log10(rate / BEST_RATE.get(norm, 0.1)))
    return round(0.97 - 0.02 * len(norm) / 9 - 0.05 * away**2 - 0.004 * ((seed * 7 + len(norm)) % 3), 4)


def run_of(cell: Cell, name: str, diverged: int | None, **of_runs: Any) -> Run:
    """A run, whose curves end where it diverged."""
    norm, rate, seed = cell
    run = page_run(norm, seed, **of_runs)
    steps = [step for step in range(0, 120, 10) if diverged is None or step < diverged]
    reached = [accuracy(norm, rate, seed) * (1 - math.exp(-(step + 10) / 30)) for step in steps]
    loss = [2.3 * math.exp(-(step + 10) * rate / 20) + 0.01 * (1 + seed) for step in steps]
    ends = [] if diverged is None else [diverged]
    run["scalars"] = {
        "val/accuracy": {"steps": steps, "values": reached},
        "train/loss": {"steps": steps + ends, "values": loss + [math.nan] * len(ends)},
    }
    return {**run, "name": name, "finished": diverged is None}


def arm_of(norm: str, rate: float, seeds: Collection[int], names: Mapping[Cell, str], diverged: Mapping[Cell, int],
           waiting: Collection[Cell]) -> Arm:  # fmt: skip
    """One arm."""
    cells = [(norm, rate, seed) for seed in seeds]
    values = [None if cell in diverged or cell in waiting else accuracy(*cell) for cell in cells]
    known = [value for value in values if value is not None]
    return {
        "name": f"{norm}, lr={rate:g}", "norm": norm, "settings": {"norm": norm, "model.optimizer.lr": rate},
        "runs": [names[cell] for cell in cells], "seeds": list(seeds), "values": values, "chosen_values": values,
        **interval_of(known), "difference": None, "best": False, "best_difference": None,
        "steps_to_target": {"median": 40 if known else None, "reached": len(known), "of": len(cells)},
        "step_ms": 1.25 + len(norm) / 10,
        "failures": [{"run": names[cell], "seed": cell[2], "kind": "diverged", "step": diverged[cell],
                      "text": "The loss is NaN."} for cell in cells if cell in diverged],
        "finished": len(known), "planned": len(cells),
    }  # fmt: skip


def interval_of(values: list[float]) -> dict[str, float | None]:
    """Mean and interval."""
    middle = mean(values) if values else None
    if middle is None or len(values) < 2:
        return {"mean": middle, "low": None, "high": None}
    half = QUANTILES[len(values)] * stdev(values) / math.sqrt(len(values))
    return {"mean": middle, "low": middle - half, "high": middle + half}


def difference(arm: Arm, base: Arm) -> dict[str, Any] | None:
    """The paired difference to an arm of the baseline."""
    pairs = [a - b for a, b in zip(arm["values"], base["values"], strict=True) if a is not None and b is not None]
    return {**interval_of(pairs), "pairs": len(pairs), "p": None, "against": base["name"]} if pairs else None
