"""By which metric runs are compared."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from normzoo.page.outcome import Curve, Outcome
from normzoo.runs.state import State

HIGHER = ("accuracy", "acc", "auroc", "auc", "f1", "precision", "recall", "iou", "dice", "map", "psnr", "ssim", "r2")
LOWER = ("loss", "error", "nll", "perplexity", "mse", "mae", "rmse")
SHARES = ("accuracy", "acc")
STAGES = ("val/", "val_", "train/", "train_")


@dataclass(frozen=True)
class Metric:
    """The metric of a comparison.

    Args:
        tag: of the values that are reported.
        chosen_by: the tag by which settings are chosen.
        mode: "max" or "min", which is better.
        is_share: whether values are parts of 1, which people write in percent.
    """

    tag: str
    chosen_by: str
    mode: str
    is_share: bool

    @property
    def sign(self) -> int:
        """1 if more is better, -1 if less is."""
        return 1 if self.mode == "max" else -1

    def chosen_value(self, run: Outcome) -> float | None:
        """The best value of a finished run by the metric that chooses."""
        if run.state is not State.FINISHED:
            return None
        values = [value for value in run.curves.get(self.chosen_by, {}).values() if math.isfinite(value)]
        return self.sign * max(self.sign * value for value in values) if values else None

    def value(self, run: Outcome) -> float | None:
        """The value of a finished run: the last of a test metric, the best of another."""
        if self.tag == self.chosen_by:
            return self.chosen_value(run)
        curve = run.curves.get(self.tag, {})
        last = curve[max(curve)] if curve and run.state is State.FINISHED else None
        return last if last is not None and math.isfinite(last) else None

    def steps_to(self, target: float, run: Outcome) -> int | None:
        """The first step at which a run is as good as a target; None if it never is."""
        curve: Curve = run.curves.get(self.chosen_by, {})
        reached = (step for step in sorted(curve) if self.sign * curve[step] >= self.sign * target)
        return next(reached, None)


def metric_of(runs: Sequence[Outcome]) -> Metric | None:
    """The metric of a comparison; None if the runs have none yet.

    Settings are chosen by the metric that the task names as its `monitor`; where that is not known, by the validation
    accuracy, else another metric of which it is known which values are better, else the loss. The test metric of the
    same name is reported, if all finished runs have it.
    """
    tags = {tag for run in runs for tag in run.curves}
    of_tasks = [(run.monitor, run.monitor_mode) for run in runs]
    of_names = [(stage + word, "max" if word in HIGHER else "min") for stage in STAGES for word in (*HIGHER, *LOWER)]
    found = next(((tag, mode) for tag, mode in (*of_tasks, *of_names) if tag in tags), None)
    if found is None:
        return None
    chosen_by, mode = found
    test = chosen_by.replace("val", "test", 1)
    finished = [run for run in runs if run.state is State.FINISHED]
    tested = bool(finished) and all(test in run.curves for run in finished)
    return Metric(test if tested else chosen_by, chosen_by, mode, are_shares(chosen_by, runs))


def are_shares(tag: str, runs: Sequence[Outcome]) -> bool:
    """Whether a metric is an accuracy as a part of 1: some tasks log percent."""
    values = (value for run in runs for value in run.curves.get(tag, {}).values())
    return last_word(tag) in SHARES and all(0 <= value <= 1 for value in values if math.isfinite(value))


def last_word(tag: str) -> str:
    """The name of a metric without its stage."""
    return tag.replace("/", "_").rpartition("_")[2]
