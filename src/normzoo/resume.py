"""The command `normzoo resume`: goes on with a run that was cut off."""

import os
from collections.abc import Sequence
from pathlib import Path

from normzoo import runs
from normzoo.errors import InputError

HELP = """usage: normzoo resume RUN_FOLDER [options of normzoo fit]

Go on with a run that was killed, in its own folder, from its newest checkpoint, to the end it would have had: the same
weights, metrics and curves, to the bit. A run without a checkpoint begins anew. The folder of an experiment means its
newest run. Everything is as the run's config.yaml says; options given behind win.

  normzoo resume lightning_logs/digits_mlp/000
  normzoo resume lightning_logs/digits_mlp                              # its newest run
  normzoo resume lightning_logs/digits_mlp/000 --trainer.max_epochs=60  # also one that has finished
"""

ROOT = Path("lightning_logs")
FIXED = {
    "--ckpt_path": "a run goes on from its own newest checkpoint; 'normzoo fit -c RUN/config.yaml --ckpt_path=FILE' "
    "starts another run from any",
    "--experiment": "a run goes on in its own folder; leave it out",
    "--runs": "a run goes on in its own folder, whose path comes first; leave it out",
}


def main(arguments: Sequence[str]) -> None:
    """Runs `normzoo resume`."""
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return
    path, *flags = arguments or [""]
    if path.startswith("-"):
        raise InputError(f"resume {path}: the folder of the run comes first: normzoo resume RUN_FOLDER {path} ...")
    for name, reason in FIXED.items():
        if any(flag == name or flag.startswith(f"{name}=") for flag in flags):
            raise InputError(f"resume {name}: {reason}.")
    run = runs.find_run(path, ROOT)
    if (run / runs.FINISHED).is_file() and not flags:
        print(f"{run} has finished: nothing is left to do. It goes on with a larger --trainer.max_epochs=N.")
        return
    if not runs.is_first():
        go_on(run, newest_checkpoint(run), flags)
        return
    runs.require_within(run)
    lock = runs.hold(run)
    try:
        checkpoint = newest_checkpoint(run)
        clean(run, checkpoint)
        print(f"resuming     {run} from {checkpoint.name if checkpoint else 'its beginning: it has no checkpoint'}")
        go_on(run, checkpoint, flags)
    finally:
        os.close(lock)


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint that a run goes on from: the last, else the newest that is not the best one, else None."""
    folder = run / "checkpoints"
    if (last := folder / "last.ckpt").is_file():
        return last
    others = (file for file in folder.glob("*.ckpt") if file.name != "best.ckpt")
    return max(others, key=lambda file: file.stat().st_mtime, default=None)


def go_on(run: Path, checkpoint: Path | None, flags: Sequence[str]) -> None:
    """Runs `normzoo fit` with the configuration of the run, in its folder."""
    from normzoo.runtime import share_cores

    share_cores()
    from normzoo import cli  # and with it torch

    place = [f"--ckpt_path={checkpoint}"] if checkpoint else []
    cli.main(["fit", "-c", str(run / runs.CONFIG), *flags, *place], run)


def clean(run: Path, checkpoint: Path | None) -> None:
    """Removes what the kill left half written, and the curves of a run that begins anew."""
    for part in run.glob("**/.*.part"):
        part.unlink(missing_ok=True)
    if checkpoint is None:
        for file in run.glob("*tfevents*"):
            file.unlink()
