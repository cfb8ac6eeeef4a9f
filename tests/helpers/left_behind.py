"""What a run leaves behind, to be compared with what another one leaves."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from torch import Tensor


def flat(value: Any, run: Path, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a checkpoint by its path, tensors as their bytes, the run's own folder as RUN."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from flat(part, run, f"{path}/{str(key).replace(str(run), 'RUN')}")
    elif isinstance(value, list | tuple):
        yield f"{path}/length", len(value)
        for i, part in enumerate(value):
            yield from flat(part, run, f"{path}/{i}")
    elif isinstance(value, Tensor):
        yield path, (value.dtype, tuple(value.shape), value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    else:
        yield path, repr(value).replace(str(run), "RUN")


def saved(run: Path, name: str) -> dict[str, Any]:
    checkpoint = torch.load(run / "checkpoints" / name, weights_only=True)
    if name == "best.ckpt":
        return dict(flat(checkpoint["state_dict"], run))
    del checkpoint["exact_resume"]["events"]  # files have the names of processes
    return dict(flat(checkpoint, run))


def records(run: Path) -> dict[str, list[tuple[int, bytes]]]:
    """Tag -> all its steps and values, in the order of the files."""
    found: dict[str, list[tuple[int, bytes]]] = {}
    for file in sorted(run.glob("*tfevents*"), key=age):
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                content = (
                    b"" if value.tag == "_hparams_/session_start_info" else value.SerializeToString()
                )  # it has a clock
                found.setdefault(value.tag, []).append((event.step, content))
    return found


def age(file: Path) -> list[int]:
    """The second, the process and the number of an event file, all of which stand in its name."""
    return [int(part) for part in file.name.split(".") if part.isdecimal()]


def differences(one: dict[str, Any], two: dict[str, Any], leaving_out: str = "nothing") -> list[str]:
    """The names of what is not the same in two runs, without those that hold a word."""
    return [
        name for name in sorted(one.keys() | two.keys()) if one.get(name) != two.get(name) and leaving_out not in name
    ]
