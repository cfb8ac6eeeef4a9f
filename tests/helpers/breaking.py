"""Disturbs one rank of a run: `disturb` runs in the process of each rank before the command line."""

import os
import signal
import sys
import time
from typing import Any

import torch

from normzoo.data import Digits
from normzoo.tasks import Classifier

OWNERS: dict[str, Any] = {"train_dataloader": Digits, "val_dataloader": Digits, "prepare_data": Digits, "fsync": os}


def disturb(rank: int, where: str, how: str) -> None:
    """Has a rank do something when it comes to a hook or function for the first time, to `training_step` for the third.

    Args:
        rank: which of the ranks that this machine has.
        where: a hook of the task or the data, or "fsync".
        how: "raise", "exit", "loop", the name of a signal, or seconds to sleep.
    """
    report_weights()
    is_it = int(os.environ["LOCAL_RANK"]) == rank
    owner = OWNERS.get(where, Classifier)
    original, calls = getattr(owner, where), 0

    def disturbed(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if is_it and calls == (3 if where == "training_step" else 1):
            act(how)
        return original(*arguments, **named)

    setattr(owner, where, disturbed)


def report_weights() -> None:
    """Has each rank print a sum of its weights at the end of training."""

    def on_train_end(self: Any) -> None:
        original(self)
        total = sum(parameter.detach().double().abs().sum() for parameter in self.parameters())
        say(f"weights {torch.as_tensor(total).item()!r}")

    original = Classifier.on_train_end
    Classifier.on_train_end = on_train_end  # type: ignore[method-assign]  # it is the purpose


def act(how: str) -> None:
    """What `disturb` says, once the time has been printed."""
    say(f"disturbed at {time.time()}")
    if how.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, how))
        time.sleep(1)
    elif how == "raise":
        raise ZeroDivisionError("on purpose")
    elif how == "exit":
        sys.exit(0)
    elif how == "loop":
        while True:
            pass
    else:
        time.sleep(float(how))


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
