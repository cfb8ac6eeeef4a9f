"""Files of a run that cannot be written: one clear message, and what has been trained stays."""

import errno
import os
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import commands
import pytest
import torch
from forks import Fork, Forks

from normzoo.errors import InputError
from normzoo.runs.storage import describe_write_error

RUN = Path("lightning_logs/default/000-BatchNorm-0")

# What goes wrong when the third epoch begins, as Python of the process itself; RUN is the run's folder.
THIRD_EPOCH = """
import ctypes, errno, os, resource, shutil, threading
from pathlib import Path
from normzoo.callbacks import HParams
RUN = Path("lightning_logs/default/000-BatchNorm-0").absolute()

def on_train_epoch_start(self, trainer, module):
    if trainer.current_epoch == 2:
        now()

HParams.on_train_epoch_start = on_train_epoch_start

def now():
"""

FILL = """
    with open("filler", "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
"""
SMALL_FILES = """
    largest = max(file.stat().st_size for file in RUN.rglob("*") if file.is_file())
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
"""
NO_QUOTA = """
    import builtins, io
    real = io.open
    def refuse(file, mode="r", *rest, **more):
        if any(letter in mode for letter in "wax") and str(RUN) in os.path.abspath(os.fsdecode(file)):
            raise OSError(errno.EDQUOT, "Disk quota exceeded", os.fsdecode(file))
        return real(file, mode, *rest, **more)
    builtins.open = io.open = refuse
"""
DELETED = """
    shutil.rmtree(RUN)
"""
EVENTS_DELETED = """
    for file in RUN.glob("*tfevents*"):
        file.unlink()
"""
FILE_IN_PLACE = """
    shutil.rmtree(RUN / "checkpoints")
    (RUN / "checkpoints").write_text("a file")
"""
DEAD_WRITER = """
    from tensorboard.summary.writer.record_writer import RecordWriter
    def fail(self, data):
        raise OSError(errno.EIO, "Input/output error")
    RecordWriter.write = fail
"""

# What goes wrong -> the source, what the message says, and whether the run is still there.
CASES: dict[str, tuple[str, str, bool]] = {
    "quota": (NO_QUOTA, "Disk quota exceeded", True),
    "limit on files": (SMALL_FILES, "File too large", True),
    "run deleted": (DELETED, "No such file or directory", False),
    "events deleted": (EVENTS_DELETED, "it was deleted during the run", True),
    "file for a folder": (FILE_IN_PLACE, "File exists", True),
    "dead writer": (DEAD_WRITER, "Input/output error", True),
}
FIT = ("fit", *commands.QUIET, "--trainer.max_epochs=5", "--trainer.num_sanity_val_steps=0")


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    made = Forks(tmp_path_factory.mktemp("forks"))
    yield made
    made.close()


def require_message(fork: Fork, says: str) -> str:
    """The message: one, clear, without a traceback."""
    assert fork.poll() == 1, fork.err
    assert "Traceback" not in fork.err + fork.out
    assert fork.err.count("normzoo: error: ") == 1
    message = fork.err.partition("normzoo: error: ")[2]
    assert "could not be written" in message
    assert says in message
    return message


def require_whole(run: Path) -> None:
    """Every checkpoint that is there can be read, and the last is."""
    pytest.importorskip("normzoo.runs.atomic", reason="checkpoints are written whole by normzoo.runs.atomic")
    files = list(run.glob("checkpoints/*.ckpt"))
    assert run / "checkpoints" / "last.ckpt" in files
    for file in files:
        saved = torch.load(file, weights_only=True)
        assert saved["epoch"] in (1, 2)
        assert all(value.isfinite().all() for value in saved["state_dict"].values())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_whose_files_fail_ends_with_a_message(case: str, forks: Forks, tmp_path: Path) -> None:
    source, says, stays = CASES[case]
    fork = forks.run(*FIT, cwd=tmp_path, before=THIRD_EPOCH + source)
    message = require_message(fork, says)
    assert "lightning_logs/default/000-BatchNorm-0" in message
    assert ("normzoo resume lightning_logs/default/000-BatchNorm-0" in message) is stays
    if stays and case != "file for a folder":
        assert "The last checkpoint is complete: lightning_logs/default/000-BatchNorm-0/checkpoints/" in message
        require_whole(tmp_path / RUN)


@pytest.mark.slow
def test_a_disk_that_fills_up(small_disk: Path, forks: Forks) -> None:
    fork = forks.run(*FIT, cwd=small_disk, before=THIRD_EPOCH + FILL)
    message = require_message(fork, "No space left on device")
    assert "normzoo resume lightning_logs/default/000-BatchNorm-0" in message
    require_whole(small_disk / RUN)


@pytest.mark.slow
def test_a_file_system_that_turns_read_only(small_disk: Path, forks: Forks) -> None:
    # The folder upon itself, since a file system with files open for writing does not change.
    source = """
    import subprocess
    for options in (["--bind"], ["-o", "remount,bind,ro"]):
        subprocess.run(["mount", *options, str(RUN), str(RUN)], check=True)
"""
    fork = forks.run(*FIT, cwd=small_disk, before=THIRD_EPOCH + source)
    message = require_message(fork, "Read-only file system")
    assert "Fix the cause, then run" in message
    require_whole(small_disk / RUN)


@pytest.mark.slow
def test_predictions_on_a_full_disk(small_disk: Path, forks: Forks, tmp_path: Path) -> None:
    run = forks.run("fit", *commands.QUIET, *commands.SHORT, cwd=tmp_path)
    assert run.poll() == 0, run.err
    flags = (f"--ckpt_path={RUN}", f"--output={small_disk / 'predictions.csv'}")
    fork = forks.run("predict", *flags, cwd=tmp_path, before=f"import os; os.chdir({str(small_disk)!r})\n"
                     "with open('filler', 'wb', buffering=0) as file:\n    file.write(bytes(2**21))\n"
                     f"os.chdir({str(tmp_path)!r})")  # fmt: skip
    message = require_message(fork, "predictions.csv could not be written: No space left on device")
    assert "choose another file" in message


# Root may write anywhere: without this right it is as another user.
AS_OTHERS = """
import ctypes
class Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]
class Rights(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]
header, rights = Header(0x20080522, 0), (Rights * 2)()
libc = ctypes.CDLL(None)
assert libc.capget(ctypes.byref(header), rights) == 0
rights[0].effective &= ~0b110  # to override what a folder says of writing and reading
assert libc.capset(ctypes.byref(header), rights) == 0
"""
FORBIDDEN = """
    for folder in (RUN, RUN / "checkpoints"):
        folder.chmod(0o555)
    for file in RUN.glob("*tfevents*"):
        file.chmod(0o444)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="rights are taken from root by what Linux has for it")
@pytest.mark.parametrize("when", ["at the start", "in the third epoch"])
def test_a_folder_that_may_not_be_written(when: str, forks: Forks, tmp_path: Path) -> None:
    source = AS_OTHERS if os.geteuid() == 0 else ""
    try:
        if when == "at the start":
            tmp_path.chmod(0o555)
            fork = forks.run(*FIT, cwd=tmp_path, before=source)
            assert fork.poll() == 1
            assert "Traceback" not in fork.err
            assert "no run can be written there (Permission denied); choose a folder with --runs" in fork.err
        else:
            fork = forks.run(*FIT, cwd=tmp_path, before=source + THIRD_EPOCH + FORBIDDEN)
            message = require_message(fork, "Permission denied")
            assert "normzoo resume" in message
            require_whole(tmp_path / RUN)
    finally:
        for folder in [tmp_path, *(p for p in tmp_path.rglob("*") if p.is_dir())]:
            folder.chmod(0o755)


# The message, without a process.


def failed(number: int, file: str | None) -> OSError:
    return OSError(number, os.strerror(number), file) if file else OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (failed(errno.ENOSPC, None), "No space left on device"),
        (
            failed(errno.ENOSPC, "/elsewhere/temporary"),
            "/elsewhere/temporary could not be written: No space left on device",
        ),
        (failed(errno.EACCES, "{run}/a.ckpt"), "Permission denied"),
        (failed(errno.EACCES, "/data/images.gz"), None),  # of a data set
        (failed(errno.ENOENT, "/data/images.gz"), None),
        (RuntimeError("shapes do not fit"), None),
        (InputError("something else"), None),
        (ValueError("a bug"), None),
    ],
)
def test_the_message(error: BaseException, says: str | None, tmp_path: Path) -> None:
    if isinstance(error, OSError) and error.filename:
        error.filename = error.filename.format(run=tmp_path)
    message = describe_write_error(error, tmp_path)
    assert (message is None) is (says is None)
    assert says is None or says in str(message)


def test_a_full_standard_output_is_not_blamed_on_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error names no file."""
    assert f"{tmp_path} could not be written" in str(describe_write_error(failed(errno.ENOSPC, None), tmp_path))
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        message = str(describe_write_error(failed(errno.ENOSPC, None), tmp_path))
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space"):
            full.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # so that it can be closed
    assert message.startswith("standard output could not be written: No space left on device")


def test_the_first_error_counts_not_its_consequences(tmp_path: Path) -> None:
    """The writer that is closed after the failure fails as well."""

    def chain(*errors: BaseException) -> BaseException:
        for before, after in pairwise(errors):
            after.__context__ = before
        return errors[-1]

    gone, full = failed(errno.ENOENT, f"{tmp_path}/events"), failed(errno.ENOSPC, None)
    assert "No space left on device" in str(
        describe_write_error(chain(full, ValueError("you tried to log 1"), gone), tmp_path)
    )
    bad = InputError("the loss is nan")
    assert describe_write_error(chain(bad, failed(errno.ENOSPC, None)), tmp_path) is bad
