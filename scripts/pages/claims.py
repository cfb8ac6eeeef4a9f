"""docs/claims.md: what papers say of normalization layers, checked at a small scale, from docs/claims.json."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normzoo.compare.claims import CLAIMS, Claim, Measured, Verdict, shown

HEAD = """\
# Does it show here? Claims of papers on small networks

<!-- Made by scripts/docs claims from docs/claims.json, which normzoo claims --json=docs/claims.json writes. -->

Each claim has a recipe: a small network on real images, a grid of norms and seeds, and rules with thresholds that were
set before these runs. A claim shows if all its rules hold on every seed; one seed outside, and it does not show; a
missing run leaves it undecided. The numbers here are those of networks that train in seconds, and not the papers'.

```sh
normzoo claims                  # all of them, in five minutes on two cores; again: skips what is trained
normzoo claims bn-sigmoid       # one
normzoo claims --list           # statements, rules and commands
```

{table}

Measured on

```
{machine}
```

## Not claimed

No rule judges what did not show at this scale, or shows in one setting and not in another:

- that batch normalization lowers the internal covariate shift as gradients define it: the ratio depends on the
  initialization, and the last row of [landscape](#landscape) reports it;
- that batch normalization fails with small batches in a plain ConvNet, without a normalized head;
- that DynamicTanh trains better than LayerNorm in a tiny vision transformer.

## A recipe of your own

A recipe is a file of `src/normzoo/compare/claims/`: the claim as data, a config, and a function from the runs of one
seed to named values. `bn_sigmoid.py` is the shortest to read.
"""


def write(root: Path) -> list[Path]:
    """Writes docs/claims.md below a folder that has docs/claims.json."""
    path = root / "docs" / "claims.md"
    path.write_text(the_page(json.loads((root / "docs" / "claims.json").read_text()), root))
    return [path]


def the_page(report: Mapping[str, Any], root: Path) -> str:
    """All of docs/claims.md.

    Args:
        report: what docs/claims.json holds.
        root: the folder from which the paths of configs start.
    """
    measured = {name: values_of(one) for name, one in report["claims"].items() if name in CLAIMS}
    tried = [claim for name, claim in CLAIMS.items() if name in measured]
    rows = ["| claim | verdict | the paper's figure | here, over seeds |", "|---|---|---|---|"]
    rows += [summary(claim, measured[claim.name]) for claim in tried]
    head = HEAD.format(table="\n".join(rows), machine=report["machine"])
    return "\n".join([head, *(section(claim, measured[claim.name], root) for claim in tried)])


def values_of(measured: Mapping[str, Mapping[str, float | None]]) -> Measured:
    """The values of each seed; JSON has null for NaN, and names for numbers."""
    return {
        int(seed): {name: math.nan if one is None else one for name, one in values.items()}
        for seed, values in measured.items()
    }


def summary(claim: Claim, measured: Measured) -> str:
    """A row of the first table, with the values of the first two rules."""
    verdict = claim.judge(measured)
    cells = (
        f"[{claim.name}](#{claim.name})",
        marked(verdict),
        claim.figure,
        "; ".join(map(str, claim.rows(measured)[:2])),
    )
    return f"| {' | '.join(cells)} |"


def marked(verdict: Verdict) -> str:
    """A verdict, in bold where it is not the usual one."""
    return str(verdict) if verdict == Verdict.SHOWS else f"**{verdict}**"


def section(claim: Claim, measured: Measured, root: Path) -> str:
    """A claim: statement, figure, recipe, and the table of what was measured."""
    seeds = [f"seed {seed}" for seed in claim.seeds]
    rows = [f"| measured | {' | '.join(seeds)} | rule | |", f"|{'---|' * (len(seeds) + 3)}"]
    for row in claim.rows(measured):
        cells = (row.value, *map(shown, row.found), str(row.rule or ""), marked(row.verdict) if row.verdict else "")
        rows.append(f"| {' | '.join(cells)} |")
    commands = claim.commands(root)
    return "\n".join(
        [
            f"## {claim.name}\n",
            f"> {claim.statement}",
            f">\n> {claim.paper}, {claim.place}\n",
            f"**The paper**: {claim.figure}.\n",
            f"**Here**: {claim.setting}\n",
            *(["```sh", *commands, "```\n"] if commands else []),
            *rows,
            "",
            *(f"- {remark}" for remark in claim.remarks),
            *([""] if claim.remarks else []),
        ]
    )
