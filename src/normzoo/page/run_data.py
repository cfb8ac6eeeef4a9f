"""A run as the page draws it: plain data and arrays."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from normzoo.page.event_log import PLUGIN, EventLog, verdicts_of
from normzoo.page.tables import MOST_STEPS, Series, Table, spread
from normzoo.runs.folders import CONFIG, FINISHED

CHANNELS, HISTOGRAM, CURVE = "channels/", "/histogram", "/curve"
LARGEST_CONFIG = 2**18  # bytes
VERDICTS_FILE = "verdicts.json"

Data = dict[str, Any]


def run_data(name: str, log: EventLog, most_steps_of_channels: int = MOST_STEPS) -> Data:
    """All that the page draws of a run.

    Args:
        name: of the run.
        log: what its event files say.
        most_steps_of_channels: steps that are kept of tables of channels; of others 200.
    """
    config = read_config(log.folder / CONFIG)
    about = {"norm": norm_of(config), "seed": config.get("seed_everything"), **log.about}
    steps = whole_number(about.get("steps"))
    tables = {
        tag: table.thinned(most_steps_of_channels if tag.startswith(CHANNELS) else MOST_STEPS)
        for tag, table in tables_of(log).items()
    }
    monitors = {tag.removeprefix(f"{PLUGIN}/"): one for tag, one in tables.items() if tag.startswith(f"{PLUGIN}/")}
    found = verdicts(log)
    is_over = steps is not None and 0 < steps <= log.last_step + 1
    return {
        "name": name,
        "norm": str(about["norm"]),
        "seed": whole_number(about["seed"]),
        "experiment": str(config.get("experiment") or log.folder.parent.name),
        "folder": str(log.folder),
        "steps": steps,
        "last_step": log.last_step,
        "finished": is_over or (log.folder / FINISHED).is_file(),
        "network": about.get("network", []),
        "judged": found is not None,
        "verdicts": found or [],
        "tables": {key: described(one) for key, one in monitors.items() if "/" not in key},
        "histograms": {
            key.removesuffix(HISTOGRAM): histograms(one) for key, one in monitors.items() if key.endswith(HISTOGRAM)
        },
        "channels": {
            tag.removeprefix(CHANNELS): {key: part for key, part in described(one).items() if key != "layers"}
            for tag, one in tables.items()
            if tag.startswith(CHANNELS)
        },
        "landscape": next((landscape(one) for key, one in monitors.items() if key.endswith(CURVE)), None),
        "scalars": {tag: curve(points) for tag, points in log.scalars.items() if tag not in log.of_monitors},
    }


def tables_of(log: EventLog) -> dict[str, Table]:
    """The tables by tag. Version 1 has some columns of a monitor in a table of their own, MONITOR/METRIC."""
    whole: dict[str, Series] = {}
    for tag, series in log.series.items():
        parts = tag.split("/")
        is_column = parts[0] == PLUGIN and len(parts) == 3 and not tag.endswith((HISTOGRAM, CURVE))
        into = whole.setdefault("/".join(parts[:2]) if is_column else tag, Series())
        for step, record in series.records.items():
            into.add(step, *record)
    return {tag: series.table() for tag, series in whole.items() if series.records}


def described(table: Table) -> Data:
    """A table as names and values."""
    layers, metrics, units = (list(one) for one in (table.names.layers, table.names.metrics, table.names.units))
    return {"steps": table.steps, "layers": layers, "metrics": metrics, "units": units, "values": table.values}


def histograms(table: Table) -> Data:
    """A table whose columns are the two ends and the counts of the bins."""
    low, high, *_ = np.moveaxis(table.values, 2, 0)
    names = list(table.names.layers)
    return {"steps": table.steps, "layers": names, "low": low, "high": high, "counts": table.values[:, :, 2:]}


def landscape(table: Table) -> Data:
    """A table whose rows are steps along the gradient."""
    columns = {metric: table.values[:, :, i] for i, metric in enumerate(table.names.metrics)}
    nothing = np.full(table.values.shape[:2], np.nan, np.float32)
    wanted = {metric: columns.get(metric, nothing) for metric in ("loss", "gradient_change")}
    return {"steps": table.steps, "eta": [float(eta) for eta in table.names.layers], **wanted}


def curve(points: Mapping[int, float]) -> Data:
    """A scalar over the steps."""
    steps = sorted(points)
    kept = [steps[i] for i in spread(len(steps), MOST_STEPS, [1] * len(steps))]
    return {"steps": kept, "values": np.array([points[step] for step in kept])}


def verdicts(log: EventLog) -> list[Data] | None:
    """The verdicts of a run, from its file, else from its event files; None if there is none of both.

    Another file of that name is noted.
    """
    file = log.folder / VERDICTS_FILE
    try:
        return verdicts_of(json.loads(file.read_bytes()))
    except FileNotFoundError:
        pass
    except (ValueError, OSError, RecursionError) as error:
        log.note(f"{file}: it is no list of verdicts ({error})")
    return [one for _, several in sorted(log.verdicts.items()) for one in several] or None


def read_config(file: Path) -> Data:
    """The configuration of a run; empty where there is none that can be read."""
    try:
        with file.open("rb") as opened:
            found = yaml.load(opened.read(LARGEST_CONFIG), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def at(config: Any, *keys: str) -> Any:
    """The value at a path of keys; None if there is none."""
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def norm_of(config: Data) -> str:
    """The class name of the norm that a configuration gives its network; "?" if it does not say."""
    norm = at(config, "model", "init_args", "net", "init_args", "norm")
    path = at(norm, "class_path") or norm
    return path.rpartition(".")[2] if isinstance(path, str) else "?"


def whole_number(value: Any) -> int | None:
    """An integer; None if it is something else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
