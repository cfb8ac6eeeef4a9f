"""What runs came to, as a table with a row for each."""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from normzoo.page.metric import metric_of
from normzoo.page.outcome import Outcome
from normzoo.page.settings import comparable


def csv_text(runs: Sequence[Outcome]) -> str:
    """A table with a row for each run: its settings, how far it is, the last value of each scalar.

    >>> csv_text([Outcome("0", norm="BatchNorm", seed=1, step=9, curves={"val/loss": {4: 0.3, 9: 0.2}})]).splitlines()
    ['run,norm,seed,state,step,val/loss,best val/loss,step_ms,message', '0,BatchNorm,1,new,9,0.2,,,']
    """
    axes, settings = comparable([run.settings for run in runs], [run.norm for run in runs])
    rows = [dict(cells(run, own)) for run, own in zip(runs, settings, strict=True)]
    metric = metric_of(runs)
    for run, row in zip(runs, rows, strict=True):
        if metric:
            row[f"best {metric.chosen_by}"] = metric.chosen_value(run)
        row |= {"step_ms": run.step_ms, "message": run.text}
    columns = dict.fromkeys(key for row in rows for key in row)
    last = dict.fromkeys(key for row in rows[:1] for key in ("step_ms", "message"))
    file = io.StringIO()
    writer = csv.DictWriter(file, [*(key for key in columns if key not in last), *last], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def cells(run: Outcome, settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The cells of a row, each with the name of its column."""
    yield "run", run.name
    yield from settings.items()
    yield from {"seed": run.seed, "state": str(run.state), "step": run.step}.items()
    yield from ((tag, curve[max(curve)]) for tag, curve in sorted(run.curves.items()) if curve)
