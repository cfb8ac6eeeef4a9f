"""Has a process of the command line kill itself at an exact point, or count how often it passes each.

Imported by the process, as what `Forks.start` runs before it.
"""

import atexit
import functools
import io
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

# Name -> module, and the function or method there. Each call of it is a place to be killed at.
POINTS: dict[str, tuple[str, str]] = {
    "start": ("normzoo.tasks.classifier", "Classifier.on_train_start"),
    "step": ("normzoo.tasks.classifier", "Classifier.training_step"),
    "batch end": ("normzoo.tasks.classifier", "Classifier.on_train_batch_end"),
    "validation": ("normzoo.tasks.classifier", "Classifier.validation_step"),
    "epoch end": ("normzoo.runs.exact_resume", "ExactResume.end_epoch"),
    "sizes": ("normzoo.runs.exact_resume", "file_sizes"),
    "write": ("normzoo.runs.checkpoint_io", "torch.save"),
    "rename": ("normzoo.runs.atomic", "Path.replace"),
    "sync": ("normzoo.runs.atomic", "os.fsync"),
    "cut": ("normzoo.runs.exact_resume", "truncate_events"),
    "train end": ("normzoo.tasks.classifier", "Classifier.on_train_end"),
    "test": ("normzoo.tasks.classifier", "Classifier.test_step"),
}
passed: Counter[str] = Counter()


def die() -> None:
    """Ends the process, and all that it started, as if the power had failed."""
    os.killpg(os.getpgid(0), signal.SIGKILL)
    time.sleep(60)


def send(number: int) -> None:
    """Sends this process a signal."""
    os.kill(os.getpid(), number)


def watch(point: str, notify: Callable[[int, bool], None]) -> None:
    """Calls `notify(how often it has passed, whether it is over)` before and after each passing of a point."""
    module, path = POINTS[point]
    *parents, name = path.split(".")
    owner: Any = functools.reduce(getattr, parents, import_module(module))
    original = getattr(owner, name)

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        passed[point] += 1
        number = passed[point]
        notify(number, False)
        result = original(*args, **kwargs)
        notify(number, True)
        return result

    setattr(owner, name, watched)


def kill(point: str, number: int, after: bool) -> None:
    """Dies at the n-th passing of a point, before or after it."""

    def notify(n: int, over: bool) -> None:
        if n == number and over == after:
            die()

    if point == "write" and not after:
        cut_writing(number)
    else:
        watch(point, notify)


def cut_writing(number: int) -> None:
    """Dies when half of the n-th checkpoint is in its file."""
    import torch

    save = torch.save

    def half(content: Any, file: Any) -> None:
        passed["write"] += 1
        if passed["write"] < number:
            save(content, file)
            return
        whole = io.BytesIO()
        save(content, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        die()

    torch.save = half


def kill_later(seconds: float) -> None:
    """Dies some time after training has begun."""

    def notify(n: int, over: bool) -> None:
        if not over and n == 1:
            threading.Thread(target=lambda: (time.sleep(seconds), die()), daemon=True).start()

    watch("start", notify)


def count(file: str) -> None:
    """Writes how often each point was passed, and the seconds between the start and the end of the training."""
    times: dict[str, float] = {}

    def clock(point: str) -> Callable[[int, bool], None]:
        return lambda n, over: times.setdefault(point, time.monotonic()) and None

    for point in POINTS:
        watch(point, clock(point))

    def write() -> None:
        seconds = times.get("train end", 0) - times.get("start", 0)
        Path(file).write_text(json.dumps({"passed": dict(passed), "seconds": seconds}))

    atexit.register(write)
