"""docs/training.md: how well networks train with each layer, from docs/training.json."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from normzoo.norms import layers

BASELINE = "BatchNorm"
MARK = 0.8

Report = Mapping[str, Any]

HEAD = """\
# How well each layer trains

Written by `scripts/docs training` from docs/training.json, which `scripts/bench sweep` makes: every layer of the zoo
with its default arguments, in three small networks on the 8 x 8 digits of scikit-learn. Too little for a ranking: it
shows which layers train at all, and at which rates.

{budget}

*accuracy* is that on the 360 test images at the best of the rates, the mean over seeds; a run whose loss or output
became NaN or infinite counts as 0, and *NaN* says how many of all the runs of the layer did. *share* is the accuracy
divided by that of `{baseline}`; below {mark:.0%} it is in bold, and the layer's card says why. A layer without a row
needs positions, which the MLP has none of.
"""


class Result(NamedTuple):
    """The runs of a layer in a network.

    Args:
        accuracy: at the best rate, the mean over seeds.
        rate: the best.
        failed: runs that ended in NaN.
        runs: all of them.
    """

    accuracy: float
    rate: float
    failed: int
    runs: int


def write(root: Path) -> list[Path]:
    """Writes docs/training.md below a folder that has docs/training.json."""
    path = root / "docs" / "training.md"
    path.write_text(the_page(json.loads((root / "docs" / "training.json").read_text())))
    return [path]


def the_page(report: Report) -> str:
    """All of docs/training.md."""
    given = report["budget"]
    budget = [
        f"- {name}: `{', '.join(f'{key}={value}' for key, value in settings.items())}`"
        for name, settings in given["networks"].items()
    ]
    budget.append(
        f"- {given['epochs']} epochs in batches of {given['batch_size']}, SGD with momentum {given['momentum']} and "
        f"constant rates {listed(given['rates'])}, seeds {listed(given['seeds'])}, ReLU, the norm before the activation"
    )
    head = HEAD.format(budget="\n".join(budget), baseline=BASELINE, mark=MARK)
    found = results(report)
    return "\n".join([head, f"```\n{report['machine']}\n```", *(section(name, found) for name in given["networks"])])


def listed(values: Iterable[float]) -> str:
    """Numbers in a row."""
    return ", ".join(map(str, values))


def results(report: Report) -> dict[tuple[str, str], Result]:
    """The result of each network and layer."""
    runs: dict[tuple[str, str], dict[float, list[float | None]]] = {}
    for key, accuracy in report["runs"].items():
        network, layer, rate, _ = key.split()
        runs.setdefault((network, layer), {}).setdefault(float(rate), []).append(accuracy)
    return {key: result(by_rate) for key, by_rate in runs.items()}


def result(by_rate: Mapping[float, list[float | None]]) -> Result:
    """The best rate, and the count of runs that ended in NaN."""
    means = {rate: mean(one or 0.0 for one in found) for rate, found in by_rate.items()}
    best = max(means, key=lambda rate: means[rate])
    every = [one for found in by_rate.values() for one in found]
    return Result(means[best], best, every.count(None), len(every))


def section(network: str, found: Mapping[tuple[str, str], Result]) -> str:
    """The table of a network, its layers in the order of the zoo."""
    rows = [f"\n## {network}\n", "| layer | accuracy | rate | NaN | share |", "|---|---|---|---|---|"]
    for name in layers():
        if (network, name) not in found:
            continue
        one, of_baseline = found[network, name], share(network, name, found)
        percent = "-" if math.isnan(of_baseline) else f"{of_baseline:.0%}"
        cells = (
            f"[{name}](zoo.md#{name.lower()})",
            f"{one.accuracy:.3f}",
            f"{one.rate}",
            f"{one.failed} of {one.runs}",
            f"**{percent}**" if of_baseline < MARK else percent,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, ""])


def share(network: str, name: str, found: Mapping[tuple[str, str], Result]) -> float:
    """The accuracy of a layer, as a share of that of the baseline; NaN where that has not been tried."""
    baseline = found.get((network, BASELINE))
    return found[network, name].accuracy / baseline.accuracy if baseline and baseline.accuracy else math.nan
