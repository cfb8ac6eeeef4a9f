"""The command `normzoo`: runs a command, and imports only what it needs."""

import errno
import os
import re
import signal
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from normzoo import __version__
from normzoo.cli.commands import COMMANDS, EVALUATE
from normzoo.cli.runtime import require_ranks, share_cores
from normzoo.errors import InputError, printable

HELP = """usage: normzoo COMMAND [options]

Train networks with any normalization layer, and see in TensorBoard what the layer does.

commands:
{commands}

  normzoo COMMAND --help lists a command's options; normzoo fit --model.net.help=MLP those of a class.

  --allow=my_package  lets config files and checkpoints name classes of your package; separate several by commas.
                      NORMZOO_ALLOW=my_package does the same. A class that you type as a flag needs neither.

examples:
  normzoo new my_project                                 # then my_project/scripts/train
  normzoo fit                                            # an MLP with BatchNorm on scikit-learn's digits
  normzoo fit -c configs/digits_mlp.yaml --model.net.norm=LayerNorm
  normzoo fit --data=FashionMNIST --model.net=ResNet --model.net.norm=GroupNorm --model.net.norm.num_groups=4
  normzoo resume lightning_logs/digits_mlp/000           # after a kill
  normzoo compare -c configs/digits_mlp.yaml norm=BatchNorm,LayerNorm seed=0..4
  normzoo test --ckpt_path=lightning_logs/digits_mlp/000
  normzoo report lightning_logs/digits_mlp -o report.html
  normzoo checkpoint lightning_logs/digits_mlp/000
  normzoo norms GroupNorm
  tensorboard --logdir=lightning_logs
""".format(commands="\n".join(f"  {name:12}{does}" for name, does in COMMANDS.items()))


def without_long_words(message: str) -> str:
    """A message whose words of 300 letters or more, such as a whole file given as a value, are shortened."""
    return re.sub(r"\S{300,}", lambda word: f"{word[0][:100]} ... {word[0][-20:]}", message)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command, whose module is imported here, and returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command, *rest = arguments or ["--help"]
    if os.getcwd() not in sys.path and not sys.flags.safe_path:  # for classes of the user's, as with `python -m`
        sys.path.append(os.getcwd())
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
        share_cores()
        require_ranks()
        module = import_module(f"normzoo.cli.{EVALUATE.get(command, command)}")
        status = module.main(arguments if command in ("fit", *EVALUATE) else rest)
        sys.stdout.flush()
    except InputError as error:
        if os.environ.get("NORMZOO_TRACEBACK"):
            raise
        print(f"normzoo: error: {printable(without_long_words(str(error)))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("normzoo: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        discard_output()
        if error.errno == errno.EPIPE:  # the reader, such as `head`, has enough
            return 128 + signal.SIGPIPE
        print(f"normzoo: error: standard output cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return status or 0


def discard_output() -> None:
    """Connects standard output to nothing: Python writes what is left of it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
