"""What is said when the files of a run cannot be written: what, where, how much space there is, and what to do."""

import errno
import os
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from normzoo.errors import InputError
from normzoo.runs.allowed import again
from normzoo.runs.folders import newest_checkpoint

# What a system calls the reason -> what it means, and what to do.
REASONS = {
    errno.ENOSPC: ("the disk is full", "make room"),
    errno.EDQUOT: ("the quota of this user is used up", "make room or have it raised"),
    errno.EFBIG: ("the file would be larger than this process may write", "raise the limit (ulimit -f)"),
    errno.EACCES: ("this user may not write there", "make it writable"),
    errno.EPERM: ("this user may not write there", "make it writable"),
    errno.EROFS: ("the file system can only be read", "make it writable"),
    errno.ENOENT: ("it is not there any more", "find out who deletes or moves the folders of runs"),
    errno.ENOTDIR: ("a file stands where a folder should be", "move that file away"),
    errno.EEXIST: ("a file stands where a folder should be", "move that file away"),
    errno.EISDIR: ("a folder stands where a file should be", "move that folder away"),
    errno.EMFILE: ("this process has too many files open", "raise the limit (ulimit -n)"),
    errno.EIO: ("the device fails", "see what ails the disk"),
}
# These are of writing, whatever file it was; the others also of reading a data set.
OF_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
# torch's own writer says no more than this.
BY_TORCH = re.compile(r"PytorchStreamWriter failed|iostream error|unexpected pos|Parent directory .* does not exist")


def unwritten(error: BaseException, run: Path | None, files: Sequence[Path] = ()) -> InputError | None:
    """What to say where a command ended since it could not write its files; None where it ended otherwise.

    Args:
        error: what ended it.
        run: the run's folder, None if there is none.
        files: others that it writes.
    """
    chain = list(chained(error))  # the newest first: what came after is but a consequence
    for one in reversed(chain):
        if isinstance(one, InputError):
            return None if one is error else one
        reason = why(one, [*files, *([run] if run else [])])
        if reason is not None:
            return message(one, reason, run, files)
    return None


def chained(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that it came of."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def why(error: BaseException, places: Sequence[Path]) -> int | None:
    """The system's number of the reason why a file in one of these places could not be written; else None."""
    if isinstance(error, RuntimeError) and BY_TORCH.search(str(error)):
        return 0
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if error.errno in OF_WRITING:
        return error.errno
    file = path_of(error)
    within = file is not None and any(file.absolute().is_relative_to(place.absolute()) for place in places)
    return error.errno if within else None


def path_of(error: BaseException) -> Path | None:
    """The file that an error is about."""
    names = [getattr(error, name, None) for name in ("filename2", "filename")]
    name = next((n for n in names if isinstance(n, str | bytes)), None)
    return Path(os.fsdecode(name)) if name else None


def message(error: BaseException, reason: int, run: Path | None, files: Sequence[Path]) -> InputError:
    """The message."""
    file = path_of(error) or (files[0] if files else run) or Path()
    place = next((p for p in (file, *file.absolute().parents) if p.exists()), Path())
    said = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    means, remedy = REASONS.get(reason, (said, "see what keeps it from being written"))
    lines = [f"{file} could not be written: {means}.{space(place)}"]
    if run is None:
        whose = " What it holds is not complete." if file.exists() else ""
        lines.append(f"{remedy[0].upper()}{remedy[1:]}, or name another file.{whose}")
    elif not run.is_dir():
        other = "" if reason == errno.ENOENT else ", or choose another folder with --runs=FOLDER"
        lines.append(f"The run is gone. {remedy[0].upper()}{remedy[1:]}{other}, and start it again.")
    else:
        kept = newest_checkpoint(run)
        whole = f"The last checkpoint is whole: {kept}." if kept else "There was no checkpoint yet."
        lines.append(f"{whole} {remedy[0].upper()}{remedy[1:]}, and go on:\n  normzoo resume {run}{again()}")
    return InputError("\n".join(lines))


def space(place: Path) -> str:
    """How much there is."""
    try:
        usage = shutil.disk_usage(place)
    except OSError:
        return ""
    return f" {amount(usage.free)} of {amount(usage.total)} are free at {place}."


def amount(size: float) -> str:
    """Bytes in words."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"


@contextmanager
def quiet_writers() -> Iterator[None]:
    """Has TensorBoard's writer thread keep its error for the training, which raises it, and not print it as well."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__name__ != "_AsyncWriterThread":
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
