"""docs/benchmark.md: all layers of the zoo compared on real images, from docs/benchmark.json."""

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

BASELINE = "BatchNorm"
Data = Mapping[str, Any]

TITLES = {
    "digits_mlp": "A sigmoid MLP of three layers, on the 8 x 8 digits of scikit-learn",
    "fashion_resnet": "ResNet-8, on Fashion-MNIST",
}

HEAD = """\
# All layers compared

Written by `scripts/docs benchmark` from docs/benchmark.json, which `scripts/bench zoo` makes: two grids of
[`normzoo compare`](compare.md), and the cost of a training step of each layer in the same networks.

The rate of each layer is tuned on the grid of rates that the command names, with seed 0, by the accuracy on the
validation images. Its best rate is then trained with seeds 1 and 2, too.

- *accuracy*: on the test images, the mean over the three seeds and Student's 95 % interval
- *against {baseline}*: the mean of the differences at equal seeds, in points, with its interval; bold where that leaves
  out 0
- *step*: the time of a training step in one thread, divided by that with TorchBatchNorm, torch's own kernel
- *saved*: what the network keeps for the backward pass
- *diverged*: how many runs, at all rates, had a loss or a gradient that was not finite

```
{machine}
```
"""

END = """\
## What may be concluded

{lessons}

## What may not

- No ranking. Between neighbours in a table the intervals overlap, and {count} comparisons with {baseline} at 95 % are
  expected to name about {chance} layers that do not differ.
- Nothing about other networks, longer training, larger images or batches. These runs take seconds: layers that learn
  slowly, or whose running statistics need long, look worse than they are. Augmentation, weight decay and schedule are
  those of the configs, which were chosen with BatchNorm.
- Nothing about a layer's other arguments: each has its defaults, and only the rate is tuned. A best rate at an end of
  its grid (†) may be better beyond it.
- A rate that was tuned with one seed may fail with others; an interval from 0 to 100 % says so, and no more.
- The cost is that of these small tensors on one core of a CPU; [speed.md](speed.md) has larger ones.
"""


def write(root: Path) -> list[Path]:
    """Writes docs/benchmark.md below a folder that has docs/benchmark.json."""
    path = root / "docs" / "benchmark.md"
    path.write_text(the_page(json.loads((root / "docs" / "benchmark.json").read_text())))
    return [path]


def the_page(report: Data) -> str:
    """All of docs/benchmark.md."""
    grids = report["grids"]
    count = sum(1 for grid in grids.values() for arm in best_arms(grid) if arm["norm"] != BASELINE)
    head = HEAD.format(machine=report["machine"], baseline=BASELINE)
    said = (" ".join(lessons_of(name, grid)) for name, grid in grids.items())
    lessons = "\n".join(fill(f"- {text}", 120, subsequent_indent="  ", break_on_hyphens=False) for text in said)
    end = END.format(lessons=lessons, count=count, baseline=BASELINE, chance=round(0.05 * count) or 1)
    return "\n".join([head, *(section(name, grid) for name, grid in grids.items()), end])


def best_arms(grid: Data) -> list[Data]:
    """The best setting of each layer, the best layer first."""
    return sorted((arm for arm in grid["arms"] if arm["best"]), key=lambda arm: -arm["mean"])


def section(name: str, grid: Data) -> str:
    """The table of a grid."""
    command = shlex.join(["normzoo", "compare", *grid["command"]])
    rows = [
        f"| layer | accuracy | against {BASELINE} | rate | step | saved | diverged |",
        "|---|---|---|---|---|---|---|",
    ]
    rows += [row(arm, grid) for arm in best_arms(grid)]
    head = [f"## {TITLES[name]}", "", "```sh", wrapped(command), "```", ""]
    return "\n".join([*head, *rows, "", *(f"{line}\n" for line in without_row(grid))])


def wrapped(command: str) -> str:
    """A command, with the list of all layers on lines of its own."""
    lines = [""]
    for part in command.replace(",", ",\0").replace(" ", " \0").split("\0"):
        if len(lines[-1]) + len(part) > 112:
            lines[-1] += "\\"
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def row(arm: Data, grid: Data) -> str:
    """The row of a layer."""
    cost = grid["costs"][arm["norm"]]
    every = [one for one in grid["arms"] if one["norm"] == arm["norm"]]
    rates = sorted(one["settings"]["model.optimizer.lr"] for one in every)
    rate = arm["settings"]["model.optimizer.lr"]
    planned = sum(one["planned"] for one in every)
    diverged = sum(one["failures"] for one in every)
    cells = (
        f"[{arm['norm']}](zoo.md#{arm['norm'].lower()})",
        percent(arm["mean"], arm["low"], arm["high"]),
        difference(arm["best_difference"]),
        f"{rate:g}{'†' if rate in (rates[0], rates[-1]) else ''}",
        f"{cost['ratio']:.2f}",
        f"{cost['saved_mb']:.2f} MB",
        f"{diverged} of {planned}" if diverged else "",
    )
    return f"| {' | '.join(cells)} |"


def percent(mean: float, low: float | None, high: float | None) -> str:
    """A mean in percent, with its interval."""
    return f"{100 * mean:.1f} %" + ("" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})")


def difference(found: Data | None) -> str:
    """A difference in points, with its interval; bold where that leaves out 0."""
    if found is None:
        return ""
    if found["low"] is None:
        return f"{100 * found['mean']:+.1f}"
    text = f"{100 * found['mean']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"
    return f"**{text}**" if found["low"] > 0 or found["high"] < 0 else text


def without_row(grid: Data) -> list[str]:
    """A sentence on the layers that the table lacks."""
    shown = {arm["norm"] for arm in best_arms(grid)}
    failed = [name for name in grid["costs"] if name not in shown]
    lines = []
    if failed:
        lines.append(f"No rate trains with {listed(failed)}.")
    if grid["refused"]:
        lines.append(f"The network refuses {listed(grid['refused'])}, which need positions.")
    return lines


def lessons_of(name: str, grid: Data) -> Iterable[str]:
    """What the intervals of a grid carry."""
    others = [arm for arm in best_arms(grid) if arm["norm"] != BASELINE and arm["best_difference"]]
    known = [arm for arm in others if arm["best_difference"]["low"] is not None]
    above = [arm["norm"] for arm in known if arm["best_difference"]["low"] > 0]
    below = [arm["norm"] for arm in known if arm["best_difference"]["high"] < 0]
    [base] = [arm for arm in best_arms(grid) if arm["norm"] == BASELINE]
    yield f"{TITLES[name]}: {BASELINE} reaches {percent(base['mean'], base['low'], base['high'])}."
    yield f"Below it, by an interval without 0: {listed(below)}." if below else "No layer is below it for certain."
    yield f"Above it: {listed(above)}." if above else "No layer is above it for certain."
    tied = len(known) - len(above) - len(below)
    yield f"The other {tied} layers are not told apart from it with three seeds."
    slow = [arm["norm"] for arm in best_arms(grid) if grid["costs"][arm["norm"]]["ratio"] > 2]
    if slow:
        yield f"A step takes more than twice that with torch's kernel with {listed(slow)}."


def listed(names: Iterable[str]) -> str:
    """Names in a sentence."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
