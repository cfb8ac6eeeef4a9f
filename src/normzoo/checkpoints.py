"""Which checkpoint is meant, and what it says of the run that wrote it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch

from normzoo.configs import read_settings
from normzoo.errors import InputError

FOLDER = "checkpoints"


def find_checkpoint(path: str, root: Path) -> Path:
    """The checkpoint file that is meant by a file, the folder of a run, or the folder of an experiment's runs.

    Of a run the best checkpoint counts, else the last; of an experiment the newest run that has one.

    Raises:
        InputError: there is none.
    """
    given = Path(path)
    if given.is_file():
        return given
    if given.is_dir():
        runs = sorted((p for p in given.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name), reverse=True)
        for run in (given, *runs):
            for name in ("best.ckpt", "last.ckpt"):
                for file in (run / FOLDER / name, run / name):
                    if file.is_file():
                        return file
    raise InputError(f"ckpt_path={path!r}: there is no checkpoint. {advice(root)}")


def advice(root: Path) -> str:
    """Which checkpoint could be meant: the newest of all runs."""
    found = sorted(root.glob(f"**/{FOLDER}/*.ckpt"), key=lambda p: p.stat().st_mtime)
    if not found:
        return f"No run under {root} has one yet: train with 'normzoo fit', or give the path of a .ckpt file."
    return f"The newest run's: --ckpt_path={found[-1].parent.parent}"


def saved_model(file: Path) -> dict[str, Any] | None:
    """The class and the arguments of the LightningModule in a checkpoint, None where it does not say.

    Raises:
        InputError: the file is no checkpoint, or holds more than tensors and plain data.
    """
    try:
        if not is_zipfile(file):
            raise ValueError("not an archive as torch.save writes it")
        with ZipFile(file) as archive:
            if damaged := archive.testzip():  # torch writes checksums and does not look at them
                raise ValueError(f"{damaged} in it is damaged")
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(checkpoint, dict) or not {"state_dict", "pytorch-lightning_version"} <= checkpoint.keys():
            raise ValueError("no state_dict, or not by Lightning")
        saved = dict(checkpoint.get("hyper_parameters", {}))
    except (UnpicklingError, BadZipFile, RuntimeError, OSError, EOFError, KeyError, TypeError, ValueError) as error:
        objects = "objects whose reading could run code"  # torch's own advice is to read them all the same
        reason = objects if isinstance(error, UnpicklingError) else str(error).strip().split(". ")[0]
        raise InputError(
            f"ckpt_path={str(file)!r} is not a checkpoint that can be read safely ({reason}); give one that "
            f"'normzoo fit' wrote: tensors and plain data only."
        ) from error
    saved.pop("_instantiator", None)
    path = saved.pop("_class_path", None)
    return {"class_path": path, "init_args": saved} if path else None


def saved_data(file: Path) -> dict[str, Any] | None:
    """The class and the arguments of the data set in the config of a checkpoint's run, None where there is none."""
    config = file.parent.parent / "config.yaml"
    if not config.is_file():
        return None
    return read_settings(config).get("data")


@contextmanager
def told_of_mismatch(file: str | None) -> Iterator[None]:
    """Raises an `InputError` that lists the differences when a checkpoint does not fit the network."""
    try:
        yield
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        shown = "\n  ".join(re.sub(r"copying a param with shape |from checkpoint, ", "", line) for line in lines[:8])
        more = f"\n  and {len(lines) - 8} more differences" if len(lines) > 8 else ""
        raise InputError(
            f"ckpt_path={file!r} holds another architecture than the one configured:\n  {shown}{more}\n"
            f"Leave out the --model flags (test, validate and predict read the network from the checkpoint), or give "
            f"those of the run that wrote it: its config.yaml."
        ) from error
