"""Breaks a rank of a run, for tests of what the others do: `arrange` runs in the process before the command line."""

import os
import signal
import sys
import time
from typing import Any

from normzoo.tasks.classifier import Classifier

PLACES = {"train": "training_step", "val": "validation_step", "save": "on_save_checkpoint", "setup": "setup"}


def arrange(rank: int, where: str, how: str) -> None:
    """One rank does something bad when the task comes to a place for the third time, or for the first."""
    honest, calls = getattr(Classifier, PLACES[where]), 0

    def broken(self: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += not self.trainer.sanity_checking
        if self.trainer.global_rank == rank and calls == (3 if where == "train" else 1):
            act(how)
        return honest(self, *arguments, **named)

    setattr(Classifier, PLACES[where], broken)


def act(how: str) -> None:
    sys.stdout.write(f"broken at {time.time()}\n")
    sys.stdout.flush()
    if how.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, how))
        time.sleep(1)
    elif how == "raise":
        raise ZeroDivisionError("on purpose")
    elif how == "exit":
        sys.exit(0)
    while True:
        pass
