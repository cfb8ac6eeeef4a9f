"""One message when a file of a run cannot be written: which file, why, and how to continue."""

import errno
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from normzoo.errors import InputError
from normzoo.runs.allowed import again
from normzoo.runs.folders import newest_checkpoint

# These come from writing, whatever file it was (EIO mostly); other reasons may also come from reading a data set.
WHILE_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


class WriteError(InputError):
    """A file could not be written, as where the disk is full."""


def describe_write_error(error: BaseException, run: Path | None, files: Sequence[Path] = ()) -> InputError | None:
    """The message for a command that ended because it could not write a file; None if it ended for another reason.

    Args:
        error: the exception that ended the command. The oldest in its chain counts: the rest are consequences.
        run: the run's folder, None if there is none.
        files: other files that the command writes.
    """
    for one in reversed(list(chain(error))):
        if isinstance(one, InputError):
            return None if one is error else one
        if isinstance(one, OSError) and is_of_writing(one, [*files, *([run] if run else [])]):
            file = path_of(one) or ((files[0] if files else run) if can_print() else "standard output")
            return WriteError(f"{file} could not be written: {one.strerror or one}.\n{how_to_continue(run)}")
    return None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it came from, the newest first."""
    seen: set[int] = set()  # `raise a from b` makes a circle where b came from a
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def path_of(error: OSError) -> str | None:
    """The file that an error names."""
    name = error.filename2 or error.filename
    return os.fsdecode(name) if isinstance(name, str | bytes) else None


def is_of_writing(error: OSError, places: Sequence[Path]) -> bool:
    """Whether an error comes from writing, or from any use of a file in one of these places."""
    file = Path(path_of(error) or "/").absolute()
    return error.errno in WHILE_WRITING or any(file.is_relative_to(place.absolute()) for place in places)


def can_print() -> bool:
    """Whether standard output takes an empty line."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        return False
    return True


def how_to_continue(run: Path | None) -> str:
    """What to do once the cause is fixed."""
    if run is None:
        return "Fix the cause, or choose another file. A file that was begun is incomplete."
    if not run.is_dir():
        return "Fix the cause, or choose another folder with --runs=FOLDER, and start the run again."
    kept = newest_checkpoint(run)
    start = f"The last checkpoint is complete: {kept}." if kept else "There is no checkpoint yet."
    return f"{start} Fix the cause, then run:\n  normzoo resume {run}{again()}"


@contextmanager
def quiet_writers() -> Iterator[None]:
    """Keeps Python from printing the error of TensorBoard's writer thread, which the next flush raises again."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        # TensorBoard's class is private; its name distinguishes the thread from those of a DataLoader.
        if type(args.thread).__name__ != "_AsyncWriterThread":
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
