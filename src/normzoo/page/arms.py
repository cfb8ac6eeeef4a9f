"""The runs of one setting, which differ in their seeds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from normzoo.page.metric import Metric
from normzoo.page.outcome import Outcome
from normzoo.page.settings import NORM, Settings, comparable, frozen, short_names, shown
from normzoo.runs.state import State


@dataclass(frozen=True)
class Arm:
    """The runs of one setting.

    Args:
        name: of the setting, such as "BatchNorm, lr=0.1".
        settings: those in which runs differ, and the norm.
        runs: one for each seed.
        values: of each run, by the metric that is reported; None without a result.
        chosen_values: the same by the metric that chooses settings.
    """

    name: str
    settings: Settings
    runs: Sequence[Outcome]
    values: Sequence[float | None]
    chosen_values: Sequence[float | None]

    @property
    def norm(self) -> str:
        """The norm, with the arguments that matter."""
        return str(self.settings[NORM])

    @property
    def others(self) -> str:
        """The settings but the norm, the same text for equal ones."""
        return frozen({key: value for key, value in self.settings.items() if key != NORM})

    @property
    def known(self) -> list[float]:
        """The values that there are."""
        return [value for value in self.values if value is not None]

    @property
    def by_seed(self) -> dict[int, float]:
        """Seed -> value."""
        pairs = zip(self.runs, self.values, strict=True)
        return {run.seed: value for run, value in pairs if run.seed is not None and value is not None}

    @property
    def chosen(self) -> dict[object, float]:
        """Seed, or name of a run without one -> value of the metric that chooses settings."""
        pairs = zip(self.runs, self.chosen_values, strict=True)
        return {seed_of(run): value for run, value in pairs if value is not None}

    @property
    def failures(self) -> list[Outcome]:
        """The runs that ended without a result."""
        return [run for run in self.runs if run.has_failed]


def arms_of(runs: Sequence[Outcome], metric: Metric | None) -> tuple[list[str], list[Arm], list[Outcome]]:
    """The settings in which runs differ, the arms, and the runs that another one with the same seed replaces.

    Arms of a norm are neighbours; norms are in the order of their first runs, settings in that of their values.
    """
    axes, settings = comparable([run.settings for run in runs], [run.norm for run in runs])
    groups: dict[str, tuple[Settings, list[Outcome]]] = {}
    for run, own in zip(runs, settings, strict=True):
        groups.setdefault(frozen(own), (own, []))[1].append(run)
    norms = list(dict.fromkeys(own[NORM] for own in settings))
    ordered = sorted(groups.values(), key=lambda group: (norms.index(group[0][NORM]), [*map(order, group[0].values())]))
    arms = []
    for own, several in ordered:
        kept = one_per_seed(several)
        values = [metric.value(run) if metric else None for run in kept]
        chosen_values = [metric.chosen_value(run) if metric else None for run in kept]
        arms.append(Arm(name_of(own), own, kept, values, chosen_values))
    kept_runs = [run for arm in arms for run in arm.runs]
    return axes, arms, [run for run in runs if run not in kept_runs]


def name_of(settings: Settings) -> str:
    """The name of a setting."""
    short = short_names(list(settings))
    others = (f"{short[key]}={shown(value)}" for key, value in settings.items() if key != NORM and value is not None)
    return ", ".join([str(settings[NORM]), *others])


def seed_of(run: Outcome) -> int | str:
    """The seed of a run; its name if that is not known."""
    return run.name if run.seed is None else run.seed


def one_per_seed(runs: Iterable[Outcome]) -> list[Outcome]:
    """Of the runs with the same seed the last that is finished, else the last; all that have no seed."""
    kept: dict[object, Outcome] = {}
    for run in runs:
        key = seed_of(run)
        if key not in kept or run.state is State.FINISHED or kept[key].state is not State.FINISHED:
            kept[key] = run
    return sorted(kept.values(), key=lambda run: (run.seed is None, run.seed or 0))


def order(value: object) -> tuple[bool, float, str]:
    """A key that sorts numbers before texts."""
    if isinstance(value, int | float):
        return False, float(value), ""
    return True, 0.0, shown(value)


def best_of(arms: Sequence[Arm], metric: Metric) -> Arm | None:
    """The best arm by the metric that chooses, of those with the fewest failures; None if there is no value.

    Means are taken over the seeds that these arms share: further seeds of one arm are no reason to choose it.
    """
    known = [arm for arm in arms if arm.known and arm.chosen]
    fewest = min((len(arm.failures) for arm in known), default=0)
    several = [arm for arm in known if len(arm.failures) == fewest]
    shared = {*several[0].chosen}.intersection(*(arm.chosen for arm in several)) if several else set()

    def score(arm: Arm) -> tuple[int, float]:
        values = [arm.chosen[seed] for seed in shared or arm.chosen]
        return len(values), metric.sign * fmean(values)

    return max(several, key=score, default=None)
