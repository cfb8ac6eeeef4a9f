"""A claim of a paper as data: the statement, the grid that tries it, what to measure, and the rules that judge it."""

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from normzoo.compare.claims._run import Run, runs_of

Values = Mapping[str, float]
"""What was measured with a seed: what it is -> value."""
Measured = Mapping[int, Values]
"""Seed -> values; none where a run has not ended."""


class Verdict(StrEnum):
    """What a rule, or all rules of a claim, say of the seeds."""

    SHOWS = "shows"
    NOT = "does not show"
    OPEN = "not decided"


@dataclass(frozen=True)
class Rule:
    """The bounds within which a value must lie, for every seed.

    Args:
        value: what is measured.
        least: the smallest value that is allowed.
        most: the largest.
    """

    value: str
    least: float = -math.inf
    most: float = math.inf

    def judge(self, measured: Measured, seeds: Sequence[int]) -> Verdict:
        """Compares the value of each seed with the bounds: one outside decides, one that is missing or NaN does not."""
        found = of_seeds(measured, seeds, self.value)
        if any(one < self.least or one > self.most for one in found):
            return Verdict.NOT
        return Verdict.OPEN if any(map(math.isnan, found)) else Verdict.SHOWS

    def __str__(self) -> str:
        if math.isinf(self.most):
            return f"at least {self.least:g}"
        return f"at most {self.most:g}" if math.isinf(self.least) else f"{self.least:g} to {self.most:g}"


class Row(NamedTuple):
    """A line of a claim's table.

    Args:
        value: what is measured.
        found: of each seed; NaN where it is missing.
        rule: its rule, None if it is reported and not judged.
        verdict: of the rule.
    """

    value: str
    found: list[float]
    rule: Rule | None
    verdict: Verdict | None

    def __str__(self) -> str:
        """The range over seeds."""
        known = [one for one in self.found if not math.isnan(one)] or [math.nan]
        return f"{self.value}: {' to '.join(dict.fromkeys((shown(min(known)), shown(max(known)))))}"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of a paper, and how to check it.

    Args:
        name: a short name.
        paper: its title, year and arXiv id.
        place: where in the paper.
        statement: what the paper says.
        figure: the paper's own numbers.
        setting: how it is tried here, in a sentence.
        rules: what must hold, on every seed.
        measure: from the runs of a seed to the values; of a recipe that trains nothing, from the seed and no runs.
        grids: folder -> arguments of `normzoo compare`; none for a recipe that trains nothing.
        seeds: those of the grids.
        remarks: what to know about it, and what did not show.
    """

    name: str
    paper: str
    place: str
    statement: str
    figure: str
    setting: str
    rules: Sequence[Rule]
    measure: Callable[[int, Sequence[Run]], Values]
    grids: Mapping[str, Sequence[str]]
    seeds: Sequence[int] = (0, 1, 2)
    remarks: Sequence[str] = ()

    def measured(self, out: Path) -> Measured:
        """Measures all seeds whose runs have ended.

        Args:
            out: the folder of the grids.
        """
        grids = [runs_of(out / folder) for folder in self.grids]
        by_seed = {seed: [run for runs in grids for run in runs if run.seed == seed] for seed in self.seeds}
        ready = [seed for seed, runs in by_seed.items() if all(grids) and all(run.has_ended for run in runs)]
        return {seed: self.measure(seed, by_seed[seed]) for seed in ready}

    def judge(self, measured: Measured) -> Verdict:
        """Judges the claim: it shows if all its rules hold on every seed."""
        found = {rule.judge(measured, self.seeds) for rule in self.rules}
        return next((verdict for verdict in (Verdict.NOT, Verdict.OPEN) if verdict in found), Verdict.SHOWS)

    def rows(self, measured: Measured) -> list[Row]:
        """What was measured, in lines: first what is judged, then what is not."""
        judged = [
            Row(rule.value, of_seeds(measured, self.seeds, rule.value), rule, rule.judge(measured, self.seeds))
            for rule in self.rules
        ]
        others = dict.fromkeys(value for values in measured.values() for value in values)
        for rule in self.rules:
            others.pop(rule.value, None)
        return [*judged, *(Row(value, of_seeds(measured, self.seeds, value), None, None) for value in others)]

    def commands(self, base: Path) -> list[str]:
        """The commands that train the grids, with paths from a folder."""
        return [
            shlex.join(["normzoo", "compare", *(relative(one, base) for one in arguments)])
            for arguments in self.grids.values()
        ]


def of_seeds(measured: Measured, seeds: Sequence[int], value: str) -> list[float]:
    """A value of each seed; NaN where it is missing."""
    return [measured.get(seed, {}).get(value, math.nan) for seed in seeds]


def shown(number: float) -> str:
    """A number in a table."""
    return "-" if math.isnan(number) else f"{number:.4g}"


def relative(argument: str, base: Path) -> str:
    """A path below a folder without the folder; another argument as it is."""
    path = Path(argument)
    return path.relative_to(base).as_posix() if path.is_absolute() and path.is_relative_to(base) else argument


def grid(config: str, *settings: str) -> tuple[str, ...]:
    """The arguments of `normzoo compare` for settings of a config in this folder."""
    return ("-c", str(Path(__file__).with_name(config)), *settings)
