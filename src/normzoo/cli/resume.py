"""The command `normzoo resume`: continues a run that was interrupted."""

import os
from collections.abc import Sequence
from pathlib import Path

from normzoo.errors import InputError

HELP = """usage: normzoo resume RUN_FOLDER [options of normzoo fit]

Continue a run that was killed, in its own folder, from its newest checkpoint, to the end it would have had: the same
weights, metrics and curves, to the bit. A run without a checkpoint starts anew. The folder of an experiment means its
newest run. All settings are those of the run's config.yaml; options on the command line win.

  normzoo resume lightning_logs/digits_mlp/000
  normzoo resume lightning_logs/digits_mlp                              # its newest run
  normzoo resume lightning_logs/digits_mlp/000 --trainer.max_epochs=60  # also one that has finished
"""

ROOT = Path("lightning_logs")
FIXED = {
    "--ckpt_path": "a run continues from its own newest checkpoint; 'normzoo fit -c RUN/config.yaml --ckpt_path=FILE' "
    "starts another run from any",
    "--experiment": "a run continues in its own folder; leave it out",
    "--runs": "a run continues in its own folder, whose path comes first; leave it out",
}


def main(arguments: Sequence[str]) -> None:
    """Runs `normzoo resume`."""
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return
    from normzoo.runs import folders  # and with it torch

    path, *flags = arguments or [""]
    if path.startswith("-"):
        raise InputError(f"resume {path}: the folder of the run comes first: normzoo resume RUN_FOLDER {path} ...")
    for name, reason in FIXED.items():
        if any(flag.partition("=")[0] == name for flag in flags):
            raise InputError(f"resume {name}: {reason}.")
    run = folders.find_run(path, ROOT)
    if (run / folders.FINISHED).is_file():
        if not flags:
            if folders.is_first():
                print(f"{run} has finished. To make it longer, add a new limit, such as --trainer.max_epochs=N.")
            return
        if folders.newest_checkpoint(run) is None:
            raise InputError(
                f"{run} has finished, and kept no checkpoint to continue from: 'normzoo fit -c {run / folders.CONFIG}' "
                f"starts another run."
            )
    resume(run, flags)


def resume(run: Path, flags: Sequence[str]) -> None:
    """Runs `normzoo fit` with the configuration of a run, in its folder, which the first process locks."""
    from normzoo.cli import fit
    from normzoo.runs import folders
    from normzoo.runs.atomic import PART

    lock = None
    if folders.is_first():
        folders.require_within(run)
        lock = folders.hold(run)
        for part in run.glob(f"**/.*{PART}"):  # half written when the run was killed
            part.unlink(missing_ok=True)
    try:
        checkpoint = folders.newest_checkpoint(run)
        if folders.is_first():
            print(f"resuming     {run} from {checkpoint.name if checkpoint else 'its beginning: it has no checkpoint'}")
        place = [f"--ckpt_path={checkpoint}"] if checkpoint else []
        fit.main(["fit", "-c", str(run / folders.CONFIG), *flags, *place], run)
    finally:
        if lock is not None:
            os.close(lock)
