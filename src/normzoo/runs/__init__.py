"""Runs: their folders, configurations and checkpoints, and the exact resume of a run that was cut off."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normzoo.runs.archive import load_checkpoint as load_checkpoint
    from normzoo.runs.checkpoint_io import SafeCheckpointIO as SafeCheckpointIO
    from normzoo.runs.exact_resume import ExactResume as ExactResume
    from normzoo.runs.loaded_task import load_task as load_task
else:
    # Imported when used: `normzoo report` reads the folders of runs without torch.
    PUBLIC = {
        "load_checkpoint": "archive",
        "SafeCheckpointIO": "checkpoint_io",
        "ExactResume": "exact_resume",
        "load_task": "loaded_task",
    }

    def __getattr__(name: str) -> Any:
        if name not in PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{PUBLIC[name]}"), name)
