"""Which checkpoint is meant, and what it says of the run that wrote it."""

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from normzoo.errors import InputError
from normzoo.runs.archive import load_checkpoint as load_checkpoint
from normzoo.runs.archive import walk
from normzoo.runs.checkpoint_classes import require_trusted
from normzoo.runs.config_files import read_settings
from normzoo.runs.folders import CHECKPOINTS, numbered

# Lightning's words for a checkpoint of a run -> the files of a run that are meant, the newest last.
WORDS = {"last": f"{CHECKPOINTS}/last.ckpt", "best": f"{CHECKPOINTS}/best.ckpt", "hpc": "hpc_ckpt_*.ckpt"}

# What a run needs to go on, beside weights.
TO_RESUME = ("epoch", "global_step", "loops", "callbacks", "optimizer_states", "lr_schedulers")
PROGRESS = ("epoch_progress", "epoch_loop.batch_progress", "epoch_loop.state_dict")


def find_checkpoint(path: str, root: Path, experiment: str = "default") -> Path:
    """The checkpoint file that is meant by a file, the folder of a run or of an experiment, or a word.

    Of a run the best checkpoint counts, else the last; of an experiment the newest run that has one. The words `last`,
    `best` and `hpc` mean that checkpoint of the newest run of the experiment that has one.

    Args:
        path: the file, folder or word.
        root: the folder of all experiments.
        experiment: the experiment that a word is about.

    Raises:
        InputError: there is none.
    """
    given = Path(path)
    if path in WORDS:
        for run in numbered(root / experiment):
            if files := sorted(run.glob(WORDS[path]), key=lambda file: int("0" + re.sub(r"\D", "", file.stem))):
                return files[-1]
        raise InputError(
            f"ckpt_path={path!r}: there is no checkpoint {root / experiment}/*/{WORDS[path]}; --experiment=NAME looks "
            f"at the runs of another experiment. {advice(root)}"
        )
    if path.startswith("registry"):
        raise InputError(f"ckpt_path={path!r}: checkpoints come from files here, not from a registry; download it.")
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
    """Which checkpoint could be meant: the newest of all runs."""
    found = sorted(root.glob(f"**/{CHECKPOINTS}/*.ckpt"), key=lambda p: p.stat().st_mtime)
    if not found:
        return f"No run under {root} has one yet: train with 'normzoo fit', or give the path of a .ckpt file."
    return f"The newest run's: --ckpt_path={found[-1].parent.parent}"


def saved_model(checkpoint: Mapping[str, Any], file: Path) -> dict[str, Any] | None:
    """The class and the arguments of the LightningModule in a checkpoint, None where it does not say.

    Raises:
        InputError: a class in it could be anything.
    """
    saved = dict(checkpoint.get("hyper_parameters") or {})
    require_trusted(saved, file)
    saved.pop("_instantiator", None)
    path = saved.pop("_class_path", None)
    if not path:  # made in Python, whose hyperparameters may be anything
        return None
    require_settings(saved, "hyper_parameters", file)
    return {"class_path": path, "init_args": saved}


def saved_data(checkpoint: Mapping[str, Any], file: Path) -> dict[str, Any] | None:
    """The class and the arguments of the data set of a checkpoint's run, None where nothing says."""
    data = saved_config(checkpoint, file).get("data")
    if isinstance(data, dict) and checkpoint.get("normzoo"):
        require_trusted(data, file)
    return data


def saved_config(checkpoint: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The configuration of a checkpoint's run: what the checkpoint says, else the `config.yaml` of its run."""
    if config := (checkpoint.get("normzoo") or {}).get("config"):
        require_settings(config, "normzoo.config", file)
        return dict(config)
    written = file.parent.parent / "config.yaml"
    if file.parent.name != CHECKPOINTS or not written.is_file():
        return {}
    return read_settings(written)


def require_settings(values: Mapping[str, Any], key: str, file: Path) -> None:
    """Raises `InputError` unless all that stands under a key of a checkpoint is what flags and config files can say."""
    for place, value in walk(values, key):
        if not isinstance(value, str | int | float | list | tuple | dict) and value is not None:
            raise InputError(
                f"ckpt_path={str(file)!r} holds a {type(value).__name__} for {place}, which is no setting; give a "
                f"checkpoint that 'normzoo fit' wrote."
            )


def require_resumable(checkpoint: Mapping[str, Any], file: Path) -> None:
    """Raises `InputError` if a checkpoint holds less than a run needs to go on."""
    missing = [part for part in TO_RESUME if part not in checkpoint]
    if not missing:
        fit_loop = checkpoint["loops"].get("fit_loop", {})
        missing = [f"loops.fit_loop.{part}" for part in PROGRESS if not isinstance(fit_loop.get(part), dict)]
        batches = fit_loop.get("epoch_loop.batch_progress")
        for key, name in (("total", "completed"), ("current", "ready")) if isinstance(batches, dict) else ():
            if not isinstance(batches.get(key), dict) or not isinstance(batches[key].get(name), int):
                missing.append(f"loops.fit_loop.epoch_loop.batch_progress.{key}.{name}")
    if missing:
        raise InputError(
            f"ckpt_path={str(file)!r} lacks {', '.join(missing)}: it can be tested, but a run cannot go on from it; "
            f"give a checkpoint that 'normzoo fit' wrote."
        )


def is_within_epoch(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was written between the first and the last batch of an epoch."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    begun = (progress.get("current") or {}).get("ready", 0) > 0
    return begun and not progress.get("is_last_batch", False)


def batches_before(checkpoint: Mapping[str, Any]) -> int:
    """How many batches the run that wrote a checkpoint had trained on."""
    total = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"].get("total") or {}
    return int(total.get("completed", 0))


@contextmanager
def told_of_mismatch(file: str | None, differences: str = "") -> Iterator[None]:
    """Raises an `InputError` that lists the differences when a checkpoint does not fit what is configured.

    Args:
        file: the checkpoint.
        differences: the settings that are not those of the checkpoint, one on each line.
    """
    settings = f"\n{differences}" if differences else ""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if "loading state_dict" not in str(error):
            if not is_restoring(error):
                raise
            said = " ".join(str(error).split())[:300]
            raise InputError(
                f"ckpt_path={file!r} cannot be taken up ({type(error).__name__}: {said}).{settings}\n"
                f"Give a checkpoint of a run with these settings: those of its config.yaml."
            ) from error
        lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        shown = "\n  ".join(re.sub(r"copying a param with shape |from checkpoint, ", "", line) for line in lines[:8])
        more = f"\n  and {len(lines) - 8} more differences" if len(lines) > 8 else ""
        raise InputError(
            f"ckpt_path={file!r} holds another architecture than the one configured:{settings}\n  {shown}"
            f"{more}\nLeave out the --model flags (test, validate and predict read the network from the checkpoint), "
            f"or give those of the run that wrote it: its config.yaml."
        ) from error


def is_restoring(error: Exception) -> bool:
    """Whether an error came up while a Trainer took up the state in a checkpoint."""
    names = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
    return bool(names & {"_restore_modules_and_callbacks", "restore_training_state"})
