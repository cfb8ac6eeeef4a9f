"""`normzoo checkpoint`: what a checkpoint holds, read without trusting it and without building anything."""

import json
import math
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from normzoo.errors import InputError, printable

USAGE = "normzoo checkpoint FILE_OR_RUN [--json] [--runs=FOLDER] [--experiment=NAME]"


class Parser(ArgumentParser):
    """Raises an `InputError` where argparse would print its usage and exit."""

    def error(self, message: str) -> Any:
        raise InputError(f"{message}. Usage: {USAGE}")


def main(arguments: Sequence[str]) -> None:
    """Runs `normzoo checkpoint`."""
    parser = Parser(
        prog="normzoo checkpoint", allow_abbrev=False, description="Show what a checkpoint holds; no code in it runs."
    )
    parser.add_argument("path", help="a file, a run, an experiment, or one of the words last and best")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--runs", default="lightning_logs", help="the folder of all experiments")
    parser.add_argument("--experiment", default="default", help="the experiment that the words last and best are about")
    given = parser.parse_args(arguments)
    from normzoo.runs.checkpoints import find_checkpoint, load_checkpoint, saved_config  # and with it torch

    file = find_checkpoint(given.path, Path(given.runs), given.experiment)
    checkpoint = load_checkpoint(file, mmap=True)
    holds = contents(checkpoint, saved_config(checkpoint, file), file)
    if given.json:
        print(json.dumps(holds, indent=2))
    else:
        print("\n".join(map(printable, lines(holds))))


def contents(checkpoint: Mapping[str, Any], config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """What a checkpoint holds, as plain data; None where it does not say.

    Args:
        checkpoint: as read.
        config: of the run that wrote it, empty where it is not known.
        file: where it was read from.
    """
    model = checkpoint.get("hyper_parameters") or {}
    weights = {key: value for key, value in checkpoint["state_dict"].items() if hasattr(value, "numel")}
    said = checkpoint.get("normzoo") or {}
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "task": model.get("_class_path"),
        "network": plain(model.get("net")),
        "norm": plain(arguments_of(model.get("net")).get("norm")),
        "parameters": plain(said.get("parameters")),
        "numbers": sum(value.numel() for value in weights.values()),
        "tensors": {key: [*value.shape] for key, value in weights.items()},
        "data": plain(config.get("data")),
        "seed": plain(config.get("seed_everything")),
        "epoch": checkpoint.get("epoch"),
        "step": checkpoint.get("global_step"),
        "metrics": plain(said.get("metrics") or {}),
        "best": dict(best(checkpoint)),
        "optimizer": plain(model.get("optimizer")),
        "lr_scheduler": plain(model.get("lr_scheduler")),
        "lr": [
            plain(group.get("lr"))
            for state in checkpoint.get("optimizer_states", ())
            for group in state.get("param_groups", ())
        ],
        "resumable": all(part in checkpoint for part in ("loops", "optimizer_states", "lr_schedulers")),
        "versions": {"lightning": checkpoint["pytorch-lightning_version"], **plain(said.get("versions") or {})},
        "digest": said.get("digest"),
    }


def best(checkpoint: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """The best value so far of each metric that a `ModelCheckpoint` watches."""
    for state in checkpoint.get("callbacks", {}).values():
        if state.get("monitor") is not None and state.get("best_model_score") is not None:
            yield str(state["monitor"]), plain(state["best_model_score"])


def arguments_of(config: Any) -> Mapping[str, Any]:
    """The arguments in the configuration of a class, none where it is none."""
    arguments = config.get("init_args") if isinstance(config, Mapping) else None
    return arguments if isinstance(arguments, Mapping) else {}


def plain(value: Any) -> Any:
    """A value as JSON has it: tensors of one element as numbers, what is no number as text."""
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if hasattr(value, "numel"):
        return plain(value.item()) if value.numel() == 1 else f"a tensor {tuple(value.shape)}"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def called(config: Any) -> str:
    """A class and its arguments as a call in Python."""
    if not isinstance(config, Mapping) or "class_path" not in config:
        return "?" if config is None else str(config)
    arguments = ", ".join(
        f"{name}={called(value) if isinstance(value, Mapping) else repr(value)}"
        for name, value in arguments_of(config).items()
        if value is not None
    )
    return f"{str(config['class_path']).rpartition('.')[2]}({arguments})"


def lines(holds: Mapping[str, Any]) -> list[str]:
    """What a checkpoint holds, to be read."""
    size = holds["bytes"] / 1e6
    learned = holds["parameters"]
    done = f"epoch {holds['epoch']}, step {holds['step']}"
    rates = ", ".join(dict.fromkeys(f"{rate:g}" if isinstance(rate, float) else str(rate) for rate in holds["lr"]))
    rows = {
        "checkpoint": f"{holds['file']} ({size:.3g} MB)",
        "task": holds["task"] or "? (it was trained in Python, and does not say)",
        "network": called(holds["network"]),
        "norm": called(holds["norm"]),
        "parameters": f"{'?' if learned is None else f'{learned:,}'}, of {holds['numbers']:,} numbers in its tensors",
        "data": called(holds["data"]),
        "seed": "?" if holds["seed"] is None else holds["seed"],
        "trained": done,
        "metrics": figures(holds["metrics"]) or "?",
        "best": figures(holds["best"]) or "?",
        "optimizer": called(holds["optimizer"]),
        "schedule": "none" if holds["lr_scheduler"] is None else called(holds["lr_scheduler"]),
        "rate": rates or "?",
        "versions": ", ".join(f"{name} {version}" for name, version in holds["versions"].items()),
        "safe": "tensors and plain data only, whole"
        + (", sealed" if holds["digest"] else "")
        + ("; a run can go on from it" if holds["resumable"] else "; weights only, no run can go on from it"),
    }
    return [f"{name:12} {text}" for name, text in rows.items()]


def figures(metrics: Mapping[str, Any]) -> str:
    """Metrics in one line."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in metrics.items()
    )
