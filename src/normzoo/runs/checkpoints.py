"""Finds the checkpoint that the user means, and reads how its run was configured and how far it got."""

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from normzoo.errors import InputError
from normzoo.runs.archive import load_checkpoint as load_checkpoint
from normzoo.runs.archive import walk
from normzoo.runs.config_files import read_settings
from normzoo.runs.contradictions import Differences, describe
from normzoo.runs.folders import CHECKPOINTS, DEPTHS, existing, is_step, numbered

# Lightning's words for a checkpoint -> the files in the folder of a run.
WORDS = {"last": f"{CHECKPOINTS}/last.ckpt", "best": f"{CHECKPOINTS}/best.ckpt", "hpc": "hpc_ckpt_*.ckpt"}

# What a run is resumed from, beside weights.
TO_RESUME = ("epoch", "global_step", "loops", "callbacks", "optimizer_states", "lr_schedulers")


def find_checkpoint(path: str, root: Path, experiment: str = "default") -> Path:
    """Finds the checkpoint file for a file, the folder of a run or of an experiment, or a word.

    Of a run it is the best checkpoint, else the last; of an experiment that of the newest run that has one. The words
    `last`, `best` and `hpc` mean that checkpoint of the newest run of the experiment that has one.

    Args:
        path: the file, folder or word.
        root: the folder of all experiments.
        experiment: the experiment for a word.

    Raises:
        InputError: there is none.
    """
    given = existing(path)
    if path in WORDS:
        for run in numbered(root / experiment):
            if files := sorted(run.glob(WORDS[path]), key=lambda file: int("0" + re.sub(r"\D", "", file.stem))):
                return files[-1]
        raise InputError(
            f"ckpt_path={path!r}: there is no checkpoint {root / experiment}/*/{WORDS[path]}; --experiment=NAME looks "
            f"at the runs of another experiment. {advice(root)}"
        )
    if path.startswith("registry"):
        raise InputError(f"ckpt_path={path!r}: a checkpoint is a local file, not from a registry; download it.")
    if given.is_file():
        return given
    if given.is_dir():
        for run in (given, *numbered(given)):
            for name in ("best.ckpt", "last.ckpt"):
                for file in (run / CHECKPOINTS / name, run / name):
                    if file.is_file():
                        return file
    raise InputError(f"ckpt_path={path!r}: there is no checkpoint. {advice(root)}")


def advice(root: Path) -> str:
    """A sentence that names the newest checkpoint of all runs."""
    files = [file for depth in DEPTHS for file in root.glob(f"{depth}{CHECKPOINTS}/*.ckpt") if file.is_file()]
    files = [file for file in files if not is_step(file.parent.parent)]
    if not files:
        return f"No run under {root} has one yet: train with 'normzoo fit', or give the path of a .ckpt file."
    return f"The newest run's: --ckpt_path={max(files, key=lambda file: file.stat().st_mtime).parent.parent}"


def saved_model(checkpoint: Mapping[str, Any], file: Path) -> dict[str, Any] | None:
    """The class path and the arguments of the task in a checkpoint, None for one that was trained in Python."""
    saved = dict(checkpoint.get("hyper_parameters") or {})
    saved.pop("_instantiator", None)
    path, configured = saved.pop("_class_path", None), saved_config(checkpoint, file).get("model")
    if path:
        model: Any = {"class_path": path, "init_args": saved}
        # A task may save some of its arguments only.
        if isinstance(configured, dict) and configured.get("class_path") == path:
            model["init_args"] = {**(configured.get("init_args") or {}), **saved}
    elif isinstance(configured, dict):
        model = {"init_args": {}, **configured}
    else:
        return None
    require_settings(model, "the task", file)
    return model


def saved_data(checkpoint: Mapping[str, Any], file: Path) -> dict[str, Any] | None:
    """The class path and the arguments of the data module of a checkpoint's run, None where they are unknown."""
    data: dict[str, Any] | None = saved_config(checkpoint, file).get("data")
    return data


def saved_config(checkpoint: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The configuration of a checkpoint's run: from the checkpoint, else from the `config.yaml` of its run."""
    if config := (checkpoint.get("normzoo") or {}).get("config"):
        require_settings(config, "normzoo.config", file)
        return dict(config)
    written = file.parent.parent / "config.yaml"
    is_in_run = file.parent.name == CHECKPOINTS and written.is_file()
    return read_settings(written) if is_in_run else {}


def require_settings(values: Any, key: str, file: Path) -> None:
    """Raises `InputError` unless a part of a checkpoint holds only what flags and config files can give."""
    for place, value in walk(values, key):
        if not isinstance(value, str | int | float | list | tuple | dict | None) or (
            place in (key, f"{key}.init_args") and not isinstance(value, dict)
        ):
            raise InputError(
                f"ckpt_path={str(file)!r} holds a {type(value).__name__} for {place}, which is no setting; give a "
                f"checkpoint that 'normzoo fit' wrote."
            )


def require_resumable(checkpoint: Mapping[str, Any], file: Path) -> None:
    """Raises `InputError` if a checkpoint holds less than a run is resumed from."""
    missing = [part for part in TO_RESUME if part not in checkpoint]
    try:
        batches_before(checkpoint), is_within_epoch(checkpoint)
    except (KeyError, TypeError, AttributeError, ValueError):
        missing = missing or ["the progress of its training loop"]
    if missing:
        raise InputError(
            f"ckpt_path={str(file)!r} lacks {', '.join(missing)}: it can be tested, but no run can be resumed from it; "
            f"give a checkpoint that 'normzoo fit' wrote."
        )


def is_within_epoch(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was written between the first and the last batch of an epoch."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return progress["current"]["ready"] > 0 and not progress["is_last_batch"]


def batches_before(checkpoint: Mapping[str, Any]) -> int:
    """The number of batches that the run of a checkpoint had trained on."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"])


def require_batches_left(checkpoint: Mapping[str, Any], max_epochs: int | None, max_steps: int, run: Path) -> None:
    """Raises `InputError` if the limits let a finished run train no further."""
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"]
    reached = {"max_epochs": (epochs, max_epochs), "max_steps": (checkpoint["global_step"], max_steps)}
    for name, (done, limit) in reached.items():
        if limit is not None and 0 <= limit <= done:
            raise InputError(f"{run} has finished, with {name}={done}; to make it longer, add --trainer.{name}=N.")


@contextmanager
def explain_mismatch(file: str | None, found: Differences) -> Iterator[None]:
    """Turns the error of a checkpoint that does not fit the configured task into one readable `InputError`.

    Args:
        file: the checkpoint.
        found: the settings that differ from the checkpoint's.
    """
    settings = f"\n{describe(found)}" if found else ""
    if any(key.startswith("model") for key in found):
        remedy = (
            "Leave out the --model flags (test, validate and predict read the network from the checkpoint), or give "
            "those of its run: its config.yaml."
        )
    elif found:
        remedy = "Give a data set with images and classes as those of the run, or leave out --data."
    else:
        remedy = "The settings are those of the run: the code of the task or the network, or the data, has changed."
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if "loading state_dict" in str(error):  # torch's message, in which each line names a tensor
            lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
            shown = "\n  ".join(lines[:8]) + (f"\n  and {len(lines) - 8} more differences" if len(lines) > 8 else "")
            raise InputError(
                f"ckpt_path={file!r} holds another architecture than the one configured:{settings}\n  {shown}\n{remedy}"
            ) from error
        if is_restoring(error):
            raise InputError(
                f"ckpt_path={file!r} cannot be restored ({type(error).__name__}: {' '.join(str(error).split())[:300]})."
                f"{settings}\nGive a checkpoint of a run with these settings: those of its config.yaml."
            ) from error
        raise


def is_restoring(error: Exception) -> bool:
    """Whether an error was raised while a Trainer restored a checkpoint."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    # Lightning has no hook around it; if this module gets another name, the error is shown as it is.
    return any(
        "restore" in frame.f_code.co_name and str(frame.f_globals.get("__name__")).endswith("checkpoint_connector")
        for frame in frames
    )
