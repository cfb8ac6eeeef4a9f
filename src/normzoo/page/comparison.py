"""Runs compared: means over seeds, differences of pairs, the best setting of each norm, what failed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, median
from typing import Any

from normzoo.errors import InputError
from normzoo.page.arms import Arm, arms_of, best_of
from normzoo.page.metric import Metric, metric_of
from normzoo.page.outcome import Outcome
from normzoo.page.settings import DATA
from normzoo.page.statistics import difference, mean_of
from normzoo.page.words import words
from normzoo.runs.state import ENDED, State

Data = dict[str, Any]


def comparison(runs: Sequence[Outcome], baseline: str | None = None, target: float | None = None) -> Data | None:
    """What the page, a table and a program show of several runs, as plain data; None for less than two runs.

    Args:
        runs: what each came to.
        baseline: the norm that the others are compared with; None for BatchNorm, else NoNorm, else the first.
        target: a value of the metric that chooses settings, to which the steps are counted.

    Raises:
        InputError: the baseline is no norm of the runs; the target is no part of 1, as the metric is.
    """
    if len(runs) < 2:
        return None
    metric = metric_of(runs)
    if target is not None and metric and metric.is_share and not 0 <= target <= 1:
        raise InputError(f"target={target:g}: {metric.chosen_by} lies between 0 and 1; give a target such as 0.95.")
    axes, arms, repeated = arms_of(runs, metric)
    norms = list(dict.fromkeys(arm.norm for arm in arms))
    base = baseline_of(norms, baseline)
    best = best_arms(arms, metric) if metric and DATA not in axes else {}
    found: Data = {
        "version": 1,
        "metric": metric and metric.tag,
        "mode": metric and metric.mode,
        "chosen_by": metric and metric.chosen_by,
        "baseline": base,
        "target": target,
        "target_metric": metric and metric.chosen_by,
        "axes": axes,
        "share": metric is not None and metric.is_share,
        "seeds": sorted({run.seed for run in runs if run.seed is not None}),
        "arms": [described(arm, arms, best, base, metric, target) for arm in arms],
        "lead": lead([*best.values()], metric),
        "repeated": [run.name for run in repeated],
        "cells": counts([run for arm in arms for run in arm.runs]),
    }
    return {**found, "words": words(found)}


def best_arms(arms: Sequence[Arm], metric: Metric) -> dict[str, Arm]:
    """Norm -> its best arm."""
    norms = dict.fromkeys(arm.norm for arm in arms)
    found = {norm: best_of([arm for arm in arms if arm.norm == norm], metric) for norm in norms}
    return {norm: arm for norm, arm in found.items() if arm}


def baseline_of(norms: Sequence[str], asked: str | None) -> str:
    """The norm that the others are compared with.

    Raises:
        InputError: the one that was asked for is not there, or not unique.
    """
    if asked is None:
        return next((norm for norm in ("BatchNorm", "NoNorm") if norm in norms), norms[0])
    fitting = [norm for norm in norms if norm == asked] or [norm for norm in norms if norm.partition("(")[0] == asked]
    if len(fitting) != 1:
        which = "is no norm of these runs" if not fitting else f"may be {' or '.join(fitting)}"
        raise InputError(f"baseline={asked!r} {which}; give one of {', '.join(norms)}.")
    return fitting[0]


def described(
    arm: Arm,
    arms: Sequence[Arm],
    best: Mapping[str, Arm],
    baseline: str,
    metric: Metric | None,
    target: float | None,
) -> Data:
    """An arm as plain data."""
    twin = next((one for one in arms if one.norm == baseline and one.others == arm.others), None)
    is_best = best.get(arm.norm) is arm
    found = mean_of(arm.known, within=(0, 1) if metric and metric.is_share else None)
    step_times = [run.step_ms for run in arm.runs if run.step_ms is not None]
    return {
        "name": arm.name,
        "norm": arm.norm,
        "settings": arm.settings,
        "runs": [run.name for run in arm.runs],
        "seeds": [run.seed for run in arm.runs],
        "values": list(arm.values),
        "chosen_values": list(arm.chosen_values),
        **(asdict(found) if found else dict.fromkeys(("mean", "low", "high"))),
        "difference": against(arm, twin),
        "best": is_best,
        "best_difference": against(arm, best.get(baseline)) if is_best else None,
        "steps_to_target": steps_to(arm, metric, target),
        "step_ms": median(step_times) if step_times else None,
        "failures": [failure(run) for run in arm.failures],
        "finished": sum(run.state is State.FINISHED for run in arm.runs),
        "planned": len(arm.runs),
    }


def against(arm: Arm, other: Arm | None) -> Data | None:
    """The difference of an arm from another one, over the seeds that both have."""
    found = difference(arm.by_seed, other.by_seed) if other and other.norm != arm.norm else None
    return {**asdict(found), "against": other.name} if found and other else None


def lead(best: Sequence[Arm], metric: Metric | None) -> Data | None:
    """The best two of the norms, each at its best setting, and their difference; None if there are no two."""
    if metric is None or len(best) < 2:
        return None
    ordered = sorted(best, key=lambda arm: -metric.sign * fmean(arm.known))
    return {"best": ordered[0].name, "second": ordered[1].name, "difference": against(*ordered[:2])}


def steps_to(arm: Arm, metric: Metric | None, target: float | None) -> Data | None:
    """The median steps to a target, of the runs that have ended; null if less than half of them reach it."""
    if metric is None or target is None:
        return None
    steps = [metric.steps_to(target, run) for run in arm.runs if run.state in ENDED]
    middle = median([float("inf") if step is None else step for step in steps]) if steps else float("inf")
    reached = sum(step is not None for step in steps)
    return {"median": None if middle == float("inf") else middle, "reached": reached, "of": len(steps)}


def failure(run: Outcome) -> Data:
    """Why a run has no result."""
    text = run.text.partition("\n")[0]
    return {"run": run.name, "seed": run.seed, "kind": str(run.state), "step": run.step, "text": text}


def counts(runs: Sequence[Outcome]) -> dict[str, int]:
    """How many runs are how far."""
    number = {state: sum(run.state is state for run in runs) for state in State}
    return {
        "planned": len(runs),
        **{str(state): number[state] for state in (*ENDED, State.RUNNING)},
        "waiting": number[State.NEW] + number[State.INTERRUPTED],
    }
