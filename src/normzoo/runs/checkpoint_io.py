"""How a Trainer reads and writes checkpoints: completely or not at all, and without running code from them."""

from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from torch.serialization import get_unsafe_globals_in_checkpoint

from normzoo.errors import InputError
from normzoo.runs.archive import load_checkpoint
from normzoo.runs.atomic import written_whole

TRANSFER = ".temp.ckpt"
"""The file in which Lightning passes weights from a spawned process to its parent: not a checkpoint."""

PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")
"""Of the state of a `ModelCheckpoint`, beside `best_k_models`: files that it may delete."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, so that a kill never leaves half a file, and loads them without running code.

    For a Trainer of your own:

        trainer = Trainer(plugins=[SafeCheckpointIO()])

    Remote paths, such as `s3://`, are handled by Lightning.

    Raises:
        InputError: a checkpoint is damaged or unsafe; one that is written holds objects that could not be loaded again.
    """

    checked = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if storage_options is not None or is_remote(path) or Path(path).name == TRANSFER:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with written_whole(Path(path)) as file:
            torch.save(checkpoint, file)
            if not self.checked:  # once per run
                file.flush()
                require_loadable(file.name, "the checkpoint")
                self.checked = True

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads a checkpoint by `normzoo.runs.load_checkpoint`.

        Args:
            path: of the file.
            map_location: not used for local files, whose tensors are loaded to the CPU.
            weights_only: False also loads objects, which can run any code: for files of your own only.
        """
        if weights_only is False or is_remote(path) or Path(path).name == TRANSFER:
            return super().load_checkpoint(path, weights_only=weights_only is not False)
        return load_checkpoint(path)


def is_remote(path: object) -> bool:
    """Whether fsspec takes a path for an address, such as `s3://bucket/file`."""
    return "://" in str(path) or "::" in str(path)


def require_loadable(file: str | IO[bytes], name: str) -> None:
    """Raises `InputError` if a file of `torch.save` holds objects that `torch.load(weights_only=True)` refuses.

    Args:
        file: the file.
        name: what it holds, for the message.
    """
    if unsafe := get_unsafe_globals_in_checkpoint(file):
        raise InputError(
            f"{name} holds objects of {', '.join(unsafe)}, which no checkpoint may hold, since loading them could run "
            f"code: save tensors and plain data (numbers, strings, lists, dicts), or register the class by "
            f"torch.serialization.add_safe_globals."
        )


def write_safely(trainer: Trainer) -> None:
    """Makes a Trainer use `SafeCheckpointIO` in place of Lightning's default; other plugins are kept.

    An `AsyncCheckpointIO` without a plugin of its own is wrapped around it.
    """
    chosen = trainer.strategy.checkpoint_io
    if type(chosen) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = SafeCheckpointIO()
    elif type(chosen) is AsyncCheckpointIO and type(chosen.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AsyncCheckpointIO(SafeCheckpointIO())


def confine_paths(trainer: Trainer, checkpoint: dict[str, Any], run: Path) -> None:
    """Makes each `ModelCheckpoint` forget its earlier files unless all of them are in the folder of the run.

    Lightning deletes these files when better ones come, and a checkpoint could name any. The files of a run that was
    moved or copied are found at their new place.

    Args:
        trainer: is about to load the state.
        checkpoint: its state is changed.
        run: the folder of the run.
    """
    states = checkpoint.get("callbacks", {})
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and (state := states.get(callback.state_key)):
            callback.current_score = state.get("current_score")  # Lightning saves it and does not restore it
            states[callback.state_key] = {**state, **files_in(run, state, str(callback.dirpath))}


def files_in(run: Path, state: dict[str, Any], new: str) -> dict[str, Any]:
    """The part of the state of a `ModelCheckpoint` that names files; empty unless all are in the folder of the run.

    Args:
        run: the folder.
        state: as saved.
        new: where the callback keeps its files now.
    """
    old, best, models = str(state.get("dirpath")), state.get("best_model_path") or "", state.get("best_k_models") or {}
    forgotten: dict[str, Any] = {**dict.fromkeys(PATHS, ""), "best_k_models": {}}
    if old != new and not (Path(best).is_relative_to(old) and followed(best, old, new).is_file()):
        return forgotten  # another run, from whose checkpoint this one starts
    files = {path: followed(path, old, new) for path in {state.get(name) for name in PATHS} | {*models} if path}
    if not all(is_inside(file, run) for file in files.values()):
        rank_zero_warn(
            f"The checkpoint names best checkpoints outside of the run folder {run}: they are left untouched, and the "
            f"best one is chosen anew from here on."
        )
        return forgotten
    now = {path: str(file) for path, file in files.items()}
    return {
        **{name: now.get(state.get(name) or "", "") for name in PATHS},
        "best_k_models": {now[path]: score for path, score in models.items()},
        "dirpath": new,
    }


def followed(path: str, old: str, new: str) -> Path:
    """A path, at its new place if it is in a folder that was moved."""
    return Path(new) / Path(path).relative_to(old) if Path(path).is_relative_to(old) else Path(path)


def is_inside(file: Path, folder: Path) -> bool:
    """Whether a file is in a folder, once links and `..` are resolved."""
    return not is_remote(file) and folder.resolve() in file.resolve().parents
