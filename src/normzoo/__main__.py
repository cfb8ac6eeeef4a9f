"""The command `normzoo`: finds out what is asked for before it imports what that needs."""

import os
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from normzoo import __version__
from normzoo.errors import InputError, printable

COMMANDS = {
    "fit": "train a network, then test the best checkpoint",
    "resume": "go on with a run that was cut off, to the end it would have had",
    "validate": "score a checkpoint on the validation images",
    "test": "score a checkpoint on the test images",
    "predict": "write a checkpoint's predictions for the test images to a file",
    "replay": "run a step again whose loss was NaN or infinite, and show every layer",
    "checkpoint": "show what a checkpoint holds, without running anything in it",
    "norms": "list the normalization layers, or show one layer's card",
}

HELP = """usage: normzoo COMMAND [options]

Train networks with any normalization layer, and see in TensorBoard what the layer does.

commands:
{commands}

  normzoo COMMAND --help lists a command's options; normzoo fit --model.net.help=MLP those of a class.

  --allow=my_package  lets a config file or a checkpoint name classes of a package of yours; several with commas.
                      So does NORMZOO_ALLOW=my_package. A class that you type as the value of a flag needs neither.

examples:
  normzoo fit                                            # an MLP with BatchNorm on scikit-learn's digits
  normzoo fit -c configs/digits_mlp.yaml --model.net.norm=LayerNorm
  normzoo fit --data=FashionMNIST --model.net=ResNet --model.net.norm=GroupNorm --model.net.norm.num_groups=4
  normzoo resume lightning_logs/digits_mlp/000           # after a kill
  normzoo test --ckpt_path=lightning_logs/digits_mlp/000
  normzoo checkpoint lightning_logs/digits_mlp/000
  normzoo norms GroupNorm
  tensorboard --logdir=lightning_logs
""".format(commands="\n".join(f"  {name:12}{does}" for name, does in COMMANDS.items()))


def shortened(message: str) -> str:
    """A message without the middle of words of hundreds of letters, such as a value that is a whole file."""
    return re.sub(r"\S{300,}", lambda word: f"{word[0][:100]} ... {word[0][-20:]}", message)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status: 0, or 1 with one message on standard error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if command == "--version":
        print(f"normzoo {__version__}")
        return 0
    try:
        if command not in COMMANDS:
            close = get_close_matches(command, COMMANDS, n=1)
            meant = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(f"unknown command {command!r}: {meant}The commands are {', '.join(COMMANDS)}.")
        if command == "norms":
            from normzoo.cli import norms

            norms.main(rest)
        elif command == "resume":
            from normzoo.cli import resume

            resume.main(rest)
        elif command == "checkpoint":
            from normzoo.cli import checkpoint

            checkpoint.main(rest)
        else:
            from normzoo.cli.runtime import share_cores

            share_cores()
            if command == "replay":
                from normzoo.cli import replay

                return replay.main(rest)
            from normzoo.cli import fit  # and with it torch

            fit.main(arguments)
    except InputError as error:
        if os.environ.get("NORMZOO_TRACEBACK"):
            raise
        print(f"normzoo: error: {printable(shortened(str(error)))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("normzoo: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
