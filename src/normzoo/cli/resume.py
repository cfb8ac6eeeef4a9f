"""The command `normzoo resume`: goes on with a run that was cut off."""

import os
from collections.abc import Sequence
from pathlib import Path

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
    from normzoo.cli.runtime import share_cores

    share_cores()
    from normzoo.runs import folders as runs  # and with it torch
    from normzoo.runs.atomic import PART

    path, *flags = arguments or [""]
    if path.startswith("-"):
        raise InputError(f"resume {path}: the folder of the run comes first: normzoo resume RUN_FOLDER {path} ...")
    for name, reason in FIXED.items():
        if any(flag == name or flag.startswith(f"{name}=") for flag in flags):
            raise InputError(f"resume {name}: {reason}.")
    run = runs.find_run(path, ROOT)
    checkpoint = runs.newest_checkpoint(run)
    if (run / runs.FINISHED).is_file():
        if not flags:
            if runs.is_first():
                print(
                    f"{run} has finished: nothing is left to do. It goes on with other "
                    f"limits, such as a larger --trainer.max_epochs=N."
                )
            return
        if checkpoint is None:
            raise InputError(
                f"{run} has finished, and kept no checkpoint that it could go on from: 'normzoo fit -c "
                f"{run / runs.CONFIG}' starts another run."
            )
    if not runs.is_first():
        go_on(run, checkpoint, flags)
        return
    runs.require_within(run)
    lock = runs.hold(run)
    try:
        checkpoint = runs.newest_checkpoint(run)  # once more: the process that has held it may have written one
        for part in run.glob(f"**/.*{PART}"):  # half written when it was killed
            part.unlink(missing_ok=True)
        print(f"resuming     {run} from {checkpoint.name if checkpoint else 'its beginning: it has no checkpoint'}")
        go_on(run, checkpoint, flags)
    finally:
        os.close(lock)


def go_on(run: Path, checkpoint: Path | None, flags: Sequence[str]) -> None:
    """Runs `normzoo fit` with the configuration of the run, in its folder."""
    from normzoo.cli import fit
    from normzoo.runs.folders import CONFIG

    place = [f"--ckpt_path={checkpoint}"] if checkpoint else []
    fit.main(["fit", "-c", str(run / CONFIG), *flags, *place], run)
