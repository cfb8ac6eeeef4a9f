"""The help of a command, on a few screens: Lightning describes each option of the Trainer in a paragraph."""

import re
import shutil
import textwrap

MOST_NAMES = 60  # of classes in a list; every module of torch is a known activation

# Options -> what they do here, in the place of Lightning's text; empty for those that are not for the command line.
OWN = {
    "--seed_everything": "The seed of all random numbers. (default: 0)",
    "--model": "The task, by its class; --model.help=Classifier lists its options, --model.net.help=MLP those of its "
    "network, --model.net.norm.help=GroupNorm those of a layer. (default: Classifier)",
    "--data": "The data set, by its class; --data.help=Digits lists its options. (default: Digits)",
    "--ckpt_path": "A checkpoint, a run, an experiment, or one of the words last and best.",
    "--weights_only": "",
    "--verbose": "Print the results. (default: True)",
}
TRAINER = "options of Lightning's Trainer; --trainer.callbacks.help=GradientFlow lists those of a class:"


def compact(text: str, command: str) -> str:
    """Shortens the parser's help of a command: its own options in full, of the Trainer's the first sentence.

    Args:
        text: the parser's.
        command: the name of the command.
    """
    options = [block for block in re.split(r"\n(?=  -|\n|\S)", text) if block.startswith("  -")]
    own = [block for block in options if not block.startswith("  --trainer")]
    trainer = [block for block in options if block.startswith("  --trainer.")]
    lines = [f"usage: normzoo {command} [-c CONFIG] [options]", "", "options:", *map(summary, own)]
    return "\n".join(line for line in [*lines, "", TRAINER, *map(summary, trainer)] if line is not None) + "\n"


def summary(option: str) -> str | None:
    """One option of the help; None for one of no use."""
    name = option.split()[0].rstrip(",")
    if name.endswith(".help"):
        return None
    if name in OWN:
        return described(name, OWN[name]) if OWN[name] else None
    if not name.startswith("--trainer."):
        return option
    text = re.split(r"\s{2,}", option.strip(), maxsplit=1)[1]
    text = re.sub(r":\w+:|`", "", " ".join(text.split()))
    default = re.search(r"default: ([^,)]*)", text)
    sentence = re.split(r"\.(?: |$)| \(type:| Default:", text)[0]
    return described(name, sentence + (f". (default: {default[1]})" if default and default[1] != "null" else "."))


def described(name: str, text: str) -> str:
    """An option and its text, in columns."""
    lines = textwrap.wrap(text, max(shutil.get_terminal_size().columns - 26, 20))
    first = [f"  {name:22}{lines[0]}"] if len(name) <= 20 else [f"  {name}", f"{'':24}{lines[0]}"]
    return "\n".join([*first, *(f"{'':24}{line}" for line in lines[1:])])


def without_long_lists(text: str) -> str:
    """A text with the number of classes in the place of a long list."""

    def shorten(found: re.Match[str]) -> str:
        names = found[1].split(",")
        return found[0] if len(names) <= MOST_NAMES else f"{len(names)} known subclasses"

    return re.sub(r"known\s+subclasses:\s+([^)]+)", shorten, text)
