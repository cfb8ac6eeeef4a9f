"""Loads checkpoint files safely: damage is detected, and no code in a file runs."""

import os
import pickle
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from torch import Tensor

from normzoo.errors import InputError

# The parts of a checkpoint that this package reads, and their types.
PARTS: dict[str, type] = {
    "pytorch-lightning_version": str,
    "state_dict": dict,
    "epoch": int,
    "global_step": int,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "hyper_parameters": dict,
    "normzoo": dict,
}
REQUIRED = ("pytorch-lightning_version", "state_dict")

MAX_SETTINGS = 10_000  # a file can hold a list within itself, which has no end


def load_checkpoint(file: str | Path | IO[bytes], *, mmap: bool = False) -> dict[str, Any]:
    """Loads a checkpoint to the CPU if it is intact; no code in it runs.

    A checkpoint that is truncated, has a flipped bit, or holds more than tensors and plain data is refused. Weights
    that are not finite cause a warning.

        load_checkpoint("lightning_logs/digits_mlp/000-BatchNorm-0/checkpoints/best.ckpt")["state_dict"]

    Args:
        file: a path or an open file, as `trainer.save_checkpoint` or the command line wrote it.
        mmap: leave the tensors in the file, which must be a path, until they are used.

    Raises:
        InputError: the file is no checkpoint, is damaged, or holds objects whose loading could run code.
    """
    name = str(file if isinstance(file, str | Path) else getattr(file, "name", file))
    try:
        require_intact(file)
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
        require_parts(checkpoint)
    except Exception as error:  # a broken file can make a reader raise anything
        raise InputError(
            f"ckpt_path={name!r} is not a checkpoint that can be loaded safely ({reason(error)}); give one that "
            f"'normzoo fit' wrote: tensors and plain data only."
        ) from error
    if not mmap and (broken := [key for key, value in checkpoint["state_dict"].items() if not is_finite(value)]):
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        warnings.warn(f"ckpt_path={name!r} holds NaN or infinity in {', '.join(broken[:3])}{more}.", stacklevel=2)
    return checkpoint


def require_intact(file: str | Path | IO[bytes]) -> None:
    """Raises an error if a file is not an archive of `torch.save` whose checksums are right."""
    if isinstance(file, str | Path):
        status = os.stat(file)
        check_file(str(file), status.st_ino, status.st_size, status.st_mtime_ns)
    else:
        check_archive(file)
        file.seek(0)


@lru_cache
def check_file(path: str, *version: int) -> None:
    """Checks a file, once for each version of it: the command line reads it first, and then the Trainer."""
    check_archive(path)


def check_archive(file: str | IO[bytes]) -> None:
    """Compares the records of a zip archive with their checksums, which torch writes and does not read."""
    with ZipFile(file) as archive:
        for record in archive.infolist():
            if record.compress_type != ZIP_STORED:  # a few bytes could become gigabytes
                raise ValueError(f"{record.filename} in it is compressed, which torch.save does not do")
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} in it is damaged")


def require_parts(checkpoint: Any) -> None:
    """Raises `ValueError` unless an object has the parts of Lightning's checkpoints."""
    if not isinstance(checkpoint, dict) or any(part not in checkpoint for part in REQUIRED):
        raise ValueError(f"it lacks {' or '.join(REQUIRED)}")
    for part, kind in PARTS.items():
        if part in checkpoint and not isinstance(checkpoint[part], kind):
            raise ValueError(f"its {part} is a {type(checkpoint[part]).__name__}, not a {kind.__name__}")


def reason(error: Exception) -> str:
    """The reason in one line, without torch's advice to load the file in an unsafe way."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds objects whose loading could run code, or is damaged"
    if isinstance(error, BadZipFile):
        return f"it is no archive of torch.save, or damaged: {error}"
    lines = (getattr(error, "strerror", None) or str(error)).strip().split(". ")[0].splitlines()
    return lines[0] if lines else type(error).__name__


def is_finite(value: Any) -> bool:
    """Whether all elements of a floating point tensor are finite; true for anything else."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return True
    return bool((value.float() if value.itemsize == 1 else value).isfinite().all())  # float8 lacks isfinite


def walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All that settings hold, however deep, each with its key.

    Raises:
        InputError: they hold more than any settings do.
    """
    pending, count = [(key, value)], 0
    while pending:
        name, current = pending.pop()
        if (count := count + 1) > MAX_SETTINGS:
            raise InputError(f"{key} holds more than {MAX_SETTINGS:,} values; give a checkpoint of 'normzoo fit'.")
        yield name, current
        if isinstance(current, dict):
            pending += [(f"{name}.{part}".lstrip("."), inner) for part, inner in current.items()]
        elif isinstance(current, list | tuple):
            pending += [(f"{name}[{place}]", inner) for place, inner in enumerate(current)]
