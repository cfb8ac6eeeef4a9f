"""A comparison in sentences: no word that the numbers do not carry."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from normzoo.page.settings import DATA, NORM, short_names, shown

Data = Mapping[str, Any]

MANY = 8
EQUAL = 1e-6


def words(data: Data) -> list[str]:
    """A comparison in sentences.

    Args:
        data: as `comparison` makes it.
    """
    parts = (progress, selection, ranking, edges, targets, failures, caution, repeats)
    return [sentence for part in parts for sentence in part(data)]


def progress(data: Data) -> Iterator[str]:
    """How many runs are finished, unless all are."""
    cells = data["cells"]
    if cells["finished"] < cells["planned"]:
        others = [f"{cells[key]} {key}" for key in ("diverged", "failed", "running", "waiting") if cells[key]]
        yield f"{cells['finished']} of {cells['planned']} runs are finished; {', '.join(others)}."


def selection(data: Data) -> Iterator[str]:
    """By what settings were chosen."""
    if data["metric"] is None and not data["cells"]["finished"]:
        return
    if data["metric"] is None:
        yield "No run has a validation metric that is known, such as val/accuracy or val/loss."
    elif DATA in data["axes"]:
        yield "The runs are of several data sets: norms are compared only where all other settings are the same."
    elif any(key != NORM for key in data["axes"]):
        if data["metric"] == data["chosen_by"]:
            yield f"Settings are chosen and compared by the same metric, {data['metric']}, which favours noise."
        else:
            yield f"The best setting of each norm is chosen by {data['chosen_by']}, and compared by {data['metric']}."


def ranking(data: Data) -> Iterator[str]:
    """Which norm has the best mean, and the norms against each other."""
    arms = {arm["name"]: arm for arm in data["arms"] if arm["best"]}
    lead = data["lead"]
    if not arms:
        return
    first = arms[lead["best"]] if lead else next(iter(arms.values()))
    place = f"has the {'highest' if data['mode'] == 'max' else 'lowest'} mean" if lead else "is the best"
    yield f"{called(first)} {place}: {data['metric']} {quantity(data, first['mean'])} ({seeds(first)})."
    of_lead = [(lead["best"], lead["difference"])] if lead and lead["difference"] else []
    of_baseline = [(name, arm["best_difference"]) for name, arm in arms.items() if arm["best_difference"]]
    few = of_baseline if len(of_baseline) <= MANY else []
    told: set[frozenset[str]] = set()
    for name, found in of_lead + few:
        if frozenset((name, found["against"])) not in told:
            told.add(frozenset((name, found["against"])))
            yield versus(data, called(arms[name]), called(arms[found["against"]]), found)
    if not few:
        yield from groups(data, arms, of_baseline)


def groups(data: Data, arms: Data, several: Iterable[tuple[str, Data]]) -> Iterator[str]:
    """Many differences to the best arm of the baseline: one sentence for those that are better, one for the worse."""
    kinds: dict[str, list[str]] = {}
    for name, found in sorted(several, key=lambda one: -abs(one[1]["mean"])):
        mean, low, high = (found[key] for key in ("mean", "low", "high"))
        other = called(arms[found["against"]])
        kind = f"{'Better' if is_better(data, mean) else 'Worse'} than {other}"
        by = f" by {difference(data, abs(mean))}"
        if low is None and abs(mean) < EQUAL:
            kind, by = f"Equal to {other}", ""
        elif low is None:
            kind += " in the only pair" if found["pairs"] == 1 else " in all pairs"
        elif low <= 0 <= high:
            kind, by = f"Not told apart from {other}", ""
        else:
            low, high = sorted((abs(low), abs(high)))
        interval = "" if low is None else f" ({' to '.join(numbers(data, low, high))})"
        kinds.setdefault(kind, []).append(f"{arms[name]['norm']}{by}{interval}")
    yield from (f"{kind}: {', '.join(texts)}." for kind, texts in kinds.items())


def is_better(data: Data, mean: float) -> bool:
    """Whether a difference is one for the better."""
    return bool(mean > 0 if data["mode"] == "max" else mean < 0)


def versus(data: Data, name: str, other: str, found: Data) -> str:
    """The difference of an arm from another one in a sentence."""
    mean, low, high, pairs = (found[key] for key in ("mean", "low", "high", "pairs"))
    if low is None and abs(mean) < EQUAL and pairs > 1:
        return f"{name} equals {other} in all {pairs} pairs."
    start = f"{name} is {'better' if is_better(data, mean) else 'worse'} than {other} by {difference(data, abs(mean))}"
    if low is None:
        where = "in the only pair: an interval takes more seeds" if pairs == 1 else f"in each of {pairs} pairs"
        return f"{start} {where}."
    if low > 0 or high < 0:
        least, most = numbers(data, *sorted((abs(low), abs(high))))
        return f"{start} (95 % interval {least} to {most}, {pairs} pairs)."
    middle, least, most = numbers(data, mean, low, high)
    needed = f"about {found['needed']} pairs" if found["needed"] else "more than 100 pairs"
    return (
        f"{name} and {other} are not told apart: the difference is {middle}{' points' * data['share']} (95 % interval "
        f"{least} to {most}, {pairs} pairs); {needed} would be needed."
    )


def edges(data: Data) -> Iterator[str]:
    """Best settings at the end of what was tried."""
    short = short_names(data["axes"])
    at: dict[tuple[str, Any, str], list[str]] = {}
    for arm in data["arms"]:
        for key in data["axes"] if arm["best"] else ():
            tried = sorted({value for value in tried_with(data, arm, key) if is_number(value)})
            if len(tried) > 1 and arm["settings"][key] in (tried[0], tried[-1]):
                end = "largest" if arm["settings"][key] == tried[-1] else "smallest"
                at.setdefault((key, arm["settings"][key], end), []).append(arm["norm"])
    for (key, value, end), norms in at.items():
        further = "larger" if end == "largest" else "smaller"
        yield (
            f"The best {short[key]} of {listed(norms)}, {shown(value)}, is the {end} tried: a {further} one may be "
            f"better."
        )


def tried_with(data: Data, arm: Data, key: str) -> Iterator[Any]:
    """The values of a setting that were tried with the norm of an arm and its other settings."""
    for other in data["arms"]:
        if all(other["settings"][one] == value for one, value in arm["settings"].items() if one != key):
            yield other["settings"][key]


def targets(data: Data) -> Iterator[str]:
    """How many steps the best arms take to the target."""
    if data["target"] is None or data["metric"] is None:
        return
    takes = []
    for arm in data["arms"]:
        found = arm["steps_to_target"] if arm["best"] else None
        if found and found["of"]:
            steps = "does not reach it" if found["median"] is None else f"{found['median']:g} steps"
            takes.append(f"{called(arm)} {steps} ({found['reached']} of {found['of']} runs)")
    if takes:
        yield f"To {data['target_metric']} {quantity(data, data['target'])}: {'; '.join(takes)}."


def failures(data: Data) -> Iterator[str]:
    """What diverged or failed, a sentence for each norm."""
    for norm in dict.fromkeys(arm["norm"] for arm in data["arms"]):
        arms = [arm for arm in data["arms"] if arm["norm"] == norm]
        planned = sum(arm["planned"] for arm in arms)
        for kind in ("diverged", "failed"):
            found = [one for arm in arms for one in arm["failures"] if one["kind"] == kind]
            if found:
                steps = [one["step"] for one in found if one["step"] is not None] if kind == "diverged" else []
                at = f", the first at step {min(steps)}" if steps else ""
                yield f"{norm}: {len(found)} of {planned} runs {kind}{at}."


def caution(data: Data) -> Iterator[str]:
    """How many of many intervals miss."""
    found = [arm["best_difference"] for arm in data["arms"] if arm["best_difference"]]
    shown_here = sum(one["low"] is not None for one in found)
    if shown_here >= MANY:
        yield f"Of {shown_here} intervals of 95 %, {shown_here / 20:.1g} miss the true difference on average."


def repeats(data: Data) -> Iterator[str]:
    """Runs that do not count."""
    if count := len(data["repeated"]):
        yield (
            f"{count} run{'s' * (count > 1)} not counted: another one has the same seed, and neither config.yaml nor "
            f"hparams.yaml shows another difference."
        )


# Names and numbers.


def called(arm: Data) -> str:
    """An arm within a sentence, where its name would have a comma."""
    settings = arm["name"][len(arm["norm"]) + 2 :]
    return f"{arm['norm']} at {settings}" if settings else str(arm["norm"])


def quantity(data: Data, value: float) -> str:
    """A value of the metric, with its unit."""
    return f"{100 * value:.1f} %" if data["share"] else f"{value:.4g}"


def difference(data: Data, value: float) -> str:
    """A difference of two values, with its unit."""
    return f"{numbers(data, value)[0]}{' points' * data['share']}"


def numbers(data: Data, *values: float) -> list[str]:
    """Differences without their unit, all with as many decimals."""
    largest = max(map(abs, values))
    if not data["share"]:
        decimals = 2 - math.floor(math.log10(largest or 1))
        return [f"{value:.{decimals}f}" if 0 <= decimals <= 5 else f"{value:.3g}" for value in values]
    decimals = 1 if largest >= 0.01 else 2
    return [f"{100 * value:.{decimals}f}" for value in values]


def seeds(arm: Data) -> str:
    """How many runs of an arm have a value."""
    count = sum(value is not None for value in arm["values"])
    return f"{count} seed{'s' * (count != 1)}" if count == arm["planned"] else f"{count} of {arm['planned']} seeds"


def listed(names: Iterable[str]) -> str:
    """Names as an enumeration."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def is_number(value: object) -> bool:
    """Whether a setting is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
