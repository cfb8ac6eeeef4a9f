"""What a run came to: its settings, how far it is, and what it measured."""

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

from normzoo.page.event_log import EventLog
from normzoo.page.run_data import norm_of, read_config, whole_number
from normzoo.page.settings import SEED, Settings, settings_of
from normzoo.runs.folders import CONFIG
from normzoo.runs.state import ENDED, State, diverged_at, failure, state_of

LOSSES = ("train/loss", "train_loss", "loss", "train/loss_step", "train_loss_step")
HPARAMS = "hparams.yaml"  # of a Trainer without config.yaml, where the module calls save_hyperparameters()
FEW = 5

Curve = Mapping[int, float]


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Args:
        name: of the run.
        norm: the class of its norm, "?" if that is not known.
        seed: None if it is not known.
        settings: by `settings_of`.
        state: how far it is.
        step: the last one, or that at which it diverged; None before the first.
        text: the message with which it failed or diverged.
        curves: tag -> step -> value, of the scalars that are not of monitors.
        step_ms: the time per training step; None if it is not known.
        monitor: the tag of the metric that the task names as its `monitor`; empty if it is not known.
        monitor_mode: "max" or "min".
    """

    name: str
    norm: str = "?"
    seed: int | None = None
    settings: Settings = field(default_factory=dict)
    state: State = State.NEW
    step: int | None = None
    text: str = ""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    step_ms: float | None = None
    monitor: str = ""
    monitor_mode: str = "min"

    @property
    def has_failed(self) -> bool:
        """Whether it ended without a result."""
        return self.state in (State.FAILED, State.DIVERGED)


def outcome(name: str, log: EventLog) -> Outcome:
    """What a run came to.

    Args:
        name: of the run.
        log: what its event files say.
    """
    config = read_config(log.folder / CONFIG)
    about = {"norm": norm_of(config), "seed": config.get(SEED), **log.about}
    curves = {tag: points for tag, points in log.scalars.items() if tag not in log.of_monitors}
    state, step = ending(log, config, curves)
    return Outcome(
        name=name,
        norm=str(about["norm"]),
        seed=whole_number(about["seed"]),
        settings=settings_of(config or read_config(log.folder / HPARAMS)),
        state=state,
        step=step,
        text=failure(log.folder),
        curves=curves,
        step_ms=step_time(log),
        monitor=str(about.get("monitor") or ""),
        monitor_mode=str(about.get("monitor_mode", "min")),
    )


def ending(log: EventLog, config: Settings, curves: Mapping[str, Curve]) -> tuple[State, int | None]:
    """How far a run is, and its last step.

    A run without a configuration is not of `normzoo fit` and marks no end: it is finished unless it has steps to do.
    """
    last = log.last_step if log.last_step >= 0 else None
    state = state_of(log.folder)
    steps = whole_number(log.about.get("steps"))
    if not config and state is State.NEW and last is not None:
        state = State.FINISHED if steps is None or steps <= last + 1 else State.INTERRUPTED
    if state is State.DIVERGED:
        return state, diverged_at(log.folder)
    bad = (bad_step(log.folder) if config.get("on_bad_loss") == "stop" else None) if state not in ENDED else None
    if bad is None and state is State.FINISHED:
        bad = first_of_no_loss(curves)
    return (state, last) if bad is None else (State.DIVERGED, bad)


def bad_step(run: Path) -> int | None:
    """The last step that `FiniteLoss` saved, None if there is none."""
    steps = [int(one.name) for one in (run / "bad").glob("*") if one.name.isdecimal()]
    return max(steps, default=None)


def first_of_no_loss(curves: Mapping[str, Curve]) -> int | None:
    """The step from which the training loss is not finite up to the end; None if it is finite at the end."""
    curve = next((curves[tag] for tag in LOSSES if tag in curves), {})
    found = None
    for step in sorted(curve, reverse=True):
        if math.isfinite(curve[step]):
            break
        found = step
    return found


def step_time(log: EventLog) -> float | None:
    """The median time between two points of the training curve, per step, in ms.

    Those count between which the fewest other records were written, at least five: if possible, no validation and no
    sample of monitors lies between them.
    """
    tag = next((tag for tag in (*LOSSES, "lr") if len(log.times.get(tag, ())) > 1), None)
    if tag is None:
        return None
    written = sorted(log.written)
    gaps = sorted(
        (bisect_left(written, after) - bisect_left(written, before), (after - before) / (step - last))
        for (last, before), (step, after) in pairwise(sorted(log.times[tag].items()))
    )
    few = gaps[min(FEW, len(gaps)) - 1][0]
    return 1e3 * median(gap for records, gap in gaps if records <= few)
