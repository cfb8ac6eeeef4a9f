"""`normzoo checkpoint`: shows what a checkpoint holds, without importing or building what it names."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from normzoo.cli.commands import ArgumentParser
from normzoo.errors import printable

# Arguments of the task that have lines of their own.
OWN_LINES = ("net", "optimizer", "lr_scheduler")


def main(arguments: Sequence[str]) -> None:
    """Runs `normzoo checkpoint`."""
    parser = ArgumentParser(
        prog="normzoo checkpoint", allow_abbrev=False, description="Show what a checkpoint holds; no code in it runs."
    )
    parser.add_argument("path", help="a file, a run, an experiment, or one of the words last and best")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--runs", default="lightning_logs", help="the folder of all experiments")
    parser.add_argument("--experiment", default="default", help="the experiment for the words last and best")
    parser.add_argument("--allow", help="has no effect, since no class is imported: accepted as by other commands")
    given = parser.parse_args(arguments)
    from normzoo.runs import checkpoints  # and with it torch

    file = checkpoints.find_checkpoint(given.path, Path(given.runs), given.experiment)
    checkpoint = checkpoints.load_checkpoint(file, mmap=True)
    task = checkpoints.saved_model(checkpoint, file) or {}
    holds = contents(checkpoint, task, checkpoints.saved_config(checkpoint, file), file)
    print(json.dumps(holds, indent=2) if given.json else "\n".join(map(printable, lines(holds))))


def contents(
    checkpoint: Mapping[str, Any], task: Mapping[str, Any], config: Mapping[str, Any], file: Path
) -> dict[str, Any]:
    """What a checkpoint holds, as plain data; None for what it does not say.

    Args:
        checkpoint: as read.
        task: the class path and arguments of its LightningModule, empty if unknown.
        config: of its run, empty if unknown.
        file: where it was read from.
    """
    arguments = arguments_of(task)
    record = checkpoint.get("normzoo") or {}
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "task": task.get("class_path"),
        "arguments": plain({name: value for name, value in arguments.items() if name not in OWN_LINES}),
        "network": plain(arguments.get("net")),
        "norm": plain(arguments_of(arguments.get("net")).get("norm")),
        "parameters": plain(record.get("parameters")),
        "numbers": sum(value.numel() for value in checkpoint["state_dict"].values() if hasattr(value, "numel")),
        "tensors": {name: [*v.shape] for name, v in checkpoint["state_dict"].items() if hasattr(v, "shape")},
        "data": plain(config.get("data")),
        "seed": plain(config.get("seed_everything")),
        "epoch": checkpoint.get("epoch"),
        "step": checkpoint.get("global_step"),
        "metrics": plain(record.get("metrics") or {}),
        "best": dict(best(checkpoint)),
        "optimizer": plain(arguments.get("optimizer")),
        "lr_scheduler": plain(arguments.get("lr_scheduler")),
        "lr": [
            plain(group.get("lr"))
            for state in checkpoint.get("optimizer_states", ())
            for group in state.get("param_groups", ())
        ],
        "resumable": all(part in checkpoint for part in ("loops", "optimizer_states", "lr_schedulers")),
        "versions": {"lightning": checkpoint["pytorch-lightning_version"], **plain(record.get("versions") or {})},
    }


def best(checkpoint: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """The best value so far of each metric that a `ModelCheckpoint` monitors."""
    for state in checkpoint.get("callbacks", {}).values():
        if state.get("monitor") is not None and state.get("best_model_score") is not None:
            yield str(state["monitor"]), plain(state["best_model_score"])


def arguments_of(config: Any) -> Mapping[str, Any]:
    """The arguments in the configuration of a class, none if it has none."""
    arguments = config.get("init_args") if isinstance(config, Mapping) else None
    return arguments if isinstance(arguments, Mapping) else {}


def plain(value: Any) -> Any:
    """A value as JSON has it: tensors of one element as numbers, other objects as text."""
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if hasattr(value, "numel"):
        return plain(value.item()) if value.numel() == 1 else f"a tensor {tuple(value.shape)}"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def call(config: Any) -> str:
    """A class and its arguments as a call in Python; any other value as it is."""
    if not isinstance(config, Mapping) or "class_path" not in config:
        return str(config)
    return f"{str(config['class_path']).rpartition('.')[2]}({listed(arguments_of(config))})"


def listed(values: Mapping[str, Any]) -> str:
    """Arguments in one line."""
    named = {name: call(v) if isinstance(v, Mapping) else repr(v) for name, v in values.items() if v is not None}
    return ", ".join(f"{name}={value}" for name, value in named.items())


def figures(metrics: Mapping[str, Any]) -> str:
    """Metrics in one line."""
    return ", ".join(f"{name} {v:.4g}" if isinstance(v, float) else f"{name} {v}" for name, v in metrics.items())


def lines(holds: Mapping[str, Any]) -> list[str]:
    """The contents as text, without lines for what the checkpoint does not say."""
    count = f"{holds['numbers']:,} numbers in its tensors"
    rates = (f"{rate:g}" if isinstance(rate, float) else str(rate) for rate in holds["lr"])
    rows = {
        "checkpoint": f"{holds['file']} ({holds['bytes'] / 1e6:.3g} MB)",
        "task": holds["task"] or "unknown, as it was trained in Python",
        "arguments": listed(holds["arguments"]),
        "network": call(holds["network"] or ""),
        "norm": call(holds["norm"] or ""),
        "parameters": count if holds["parameters"] is None else f"{holds['parameters']:,}, of {count}",
        "data": call(holds["data"] or ""),
        "seed": "" if holds["seed"] is None else holds["seed"],
        "trained": f"epoch {holds['epoch']}, step {holds['step']}" if holds["epoch"] is not None else "",
        "metrics": figures(holds["metrics"]),
        "best": figures(holds["best"]),
        "optimizer": call(holds["optimizer"] or ""),
        "schedule": call(holds["lr_scheduler"] or ""),
        "rate": ", ".join(dict.fromkeys(rates)),
        "versions": ", ".join(f"{name} {version}" for name, version in holds["versions"].items()),
        "safe": "yes: tensors and plain data only, undamaged",
        "resumable": "yes" if holds["resumable"] else "no: weights only",
    }
    return [f"{name:12} {text}" for name, text in rows.items() if text != ""]
