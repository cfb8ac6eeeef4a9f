"""Turns the error of the argument parser into one message: the value, the rule and the remedy."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import Callback
from torch import optim
from torch.optim.lr_scheduler import LRScheduler

from normzoo import callbacks, data, models, norms, tasks
from normzoo.errors import InputError
from normzoo.norms._arguments import keyword_defaults, own_of
from normzoo.runs.allowed import CODE, resolve

# Last part of a key -> the names of this package's classes that it accepts.
CHOICES: dict[str, Callable[[], Iterable[str]]] = {
    "norm": norms.layers,
    "then": norms.layers,
    "net": lambda: subclasses(models, models.Network),
    "init": lambda: subclasses(models, models.Init),
    "data": lambda: subclasses(data, data.ImageData),
    "optimizer": lambda: subclasses(optim, optim.Optimizer),
    "lr_scheduler": lambda: [*subclasses(tasks, LRScheduler), *subclasses(optim.lr_scheduler, LRScheduler)],
    "callbacks": lambda: [*subclasses(callbacks, Callback), *subclasses(lightning_callbacks, Callback)],
}
# Arguments of a class that the network, the task or the data module passes.
PASSED = {"num_features", "input_shape", "num_classes", "params", "optimizer"}

# Lines of the parser's nested message that say nothing to a user.
NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Given value|Problem with given class_path|Expected a path but"
    r"|Expected a <class 'NoneType'>"
)
# Statements about one type of a union, to which another type has more to say.
VAGUE = re.compile(r"does not correspond to a subclass|Expected a <class '(list|tuple|collections.abc.Sequence)'>")
KEY = re.compile(r'Parser key "([^"]*)":\s*')
WRAPPING = re.compile(r"Type \S*Callable\S* ?\S* expects a function or a callable class: ")
UNKNOWN = r"(?:[Oo]ption '([^']*)' is not accepted|Key '([^']*)' is not expected)"


def explain(message: str, options: Iterable[str] = ()) -> str:
    """The essence of a parser's message: the key, what was wrong, and the choices.

    Args:
        message: the parser's.
        options: all options of the parser, without their dashes.
    """
    keys, said = innermost(message) if KEY.search(message) else ([], " ".join(message.split()))
    key = f"{'.'.join(keys)}: " if keys else ""
    choices = sorted(CHOICES.get(key.rpartition(".")[2].removesuffix(": "), tuple)())
    said = (
        unknown_argument(said, message)
        or unknown_class(said, message, choices)
        or unknown_option(said, options, key)
        or wrong_value(said, message)
        or said
    )
    return f"{key}{said.rstrip('.')}{'' if said.endswith('?') else '.'}"


def unknown_argument(said: str, message: str) -> str | None:
    """The message for an argument that a class does not have."""
    found = re.search(UNKNOWN, said)
    taken = arguments_of(message) if found else None
    if found is None or taken is None:
        return None
    name, (owner, arguments) = (found[1] or found[2]).split(".")[0], taken
    close = nearest(name, arguments) or nearest(name, ["class_path", "init_args"], cutoff=0.8)
    others = [layer for layer, kind in norms.layers().items() if name in keyword_defaults(kind)]
    elsewhere = (
        f" {', '.join(sorted(others, key=len)[:3])} {'has' if len(others) == 1 else 'have'} it."
        if owner in norms.layers() and others
        else ""
    )
    return f"{owner} has no argument {name!r}.{close}{elsewhere} Its arguments are {', '.join(arguments) or 'none'}"


def unknown_class(said: str, message: str, choices: list[str]) -> str | None:
    """The message for the name of a class that does not exist, or does not fit."""
    if several := re.search(r"Multiple subclasses with name (\w+)\..* ambiguity: ([\w., ]+)", said):
        paths = [path for path in several[2].rstrip(". ").split(", ") if not path.startswith(CODE)]
        return f"there are several {several[1]}; give the path of one: {', '.join(paths)}"
    if name := re.search(r"Expected a dot import path string: ?(\S*)", said):
        known = f" Choices: {', '.join(choices)}." if choices else ""
        own = f"Give your own by its path, my_package.{name[1]}"
        return f"there is no {name[1]!r}.{nearest(name[1], choices)}{known} {own}"
    if missing := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", said):
        there = subclasses(sys.modules.get(missing[1]), object)
        return f"there is no '{missing[1]}.{missing[2]}'.{nearest(missing[2], there)}"
    if base := re.search(r"^Not a valid subclass of (\w+)", said):
        return f"expected the name of a {base[1]}, or class_path and init_args of one"
    if base := re.search(r"^Import path ?([\w.]*) does not correspond to a subclass of (\w+)", said):
        given = re.search(r"Given value: ([\w.]+)$", message, re.MULTILINE)
        return f"{base[1] or (given[1] if given else 'this')} is no {base[2]}"
    if base := re.search(r"Expected '([\w.]+)' to be .*?<class '(?:[\w.]+\.)?(\w+)'>", said):
        return f"{base[1]!r} is no {base[2]}, and does not build one"
    return None


def unknown_option(said: str, options: Iterable[str], key: str) -> str | None:
    """The message for an option that the command does not have."""
    if said.startswith("unrecognized arguments"):
        name = said.split()[-1].lstrip("-").split("=")[0]
        rule = "Options of the network start with --model.net, those of the task with --model"
        kinds = {"model: ": [tasks.Classifier], "data: ": [getattr(data, one) for one in CHOICES["data"]()]}
        if key in kinds:
            known = {one for kind in kinds[key] for one in signature(kind).parameters}
            close = nearest(name.split(".")[0], sorted(known), prefix=f"--{key.removesuffix(': ')}.")
            return f"{said}.{close} {rule}"
        return f"{said}.{nearest(name, options, prefix='--')} {rule}"
    if option := re.search(r"does not accept option '([^']*)'", said):
        return f"{said}.{nearest_key(option[1], options)}"
    return None


def wrong_value(said: str, message: str) -> str | None:
    """The message for a value of the wrong type."""
    if not said.startswith("Expected a"):
        return None
    types = dict.fromkeys(re.findall(r"Expected an? <class '([\w.]+)'>", message))
    lists = ("collections.abc.Sequence", "tuple")
    kinds = [f"a value of type {'list' if name in lists else name}" for name in types if name != "NoneType"]
    words = dict.fromkeys(re.findall(r"Expected an? typing.Literal\[(.*?)\]", message))
    expected = " or ".join([*kinds, f"one of {', '.join(words)}"] if words else kinds) or "the name of a class"
    value = re.search(
        r"(?:Got|Given) value: (?!Namespace|NestedArg)([^\n]*?)(?:\. Got value: .*)?$", message, re.MULTILINE
    )
    return f"expected {expected}; got {quoted(value[1]) if value else 'another value'}"


def quoted(value: str) -> str:
    """A value in quotes, without the middle of a long one."""
    return repr(value if len(value) <= 200 else f"{value[:100]} ... {value[-20:]}")


def cause(error: Exception) -> str:
    """What went wrong when a class was built: the class, and what it raised."""
    path = re.search(r"given class_path '([\w.]+)'", str(error))
    if path:
        return f"{path[1]}: {innermost(str(error))[1]}"
    first: BaseException = error
    while (before := first.__cause__ or first.__context__) is not None:
        first = before
    explains = isinstance(first, ValueError | MisconfigurationException)  # by a message written for users
    return str(error) if explains else f"{type(first).__name__}: {first}"


def innermost(message: str) -> tuple[list[str], str]:
    """The keys that lead to a statement in a nested message, and the statement: the first that is specific."""
    found = list(statements(message)) or [([], message.strip().splitlines()[-1].strip())]
    return next((one for one in found if not VAGUE.search(one[1])), found[0])


def statements(message: str) -> Iterator[tuple[list[str], str]]:
    """Each statement in a nested message, with the keys that lead to it."""
    stack: list[tuple[int, str]] = []
    for line in message.splitlines():
        indent, text = len(line) - len(line.lstrip()), WRAPPING.sub("", line.strip().removeprefix("- "))
        while stack and stack[-1][0] >= indent > 0:
            stack.pop()
        while key := KEY.match(text):
            stack.append((indent, key[1]))
            text = text[key.end() :]
        if text and not NOISE.search(text):
            yield [key for _, key in stack], re.sub(r"\.? Got value: Namespace\(.*$", "", text)


def arguments_of(message: str) -> tuple[str, list[str]] | None:
    """The name and the arguments of the innermost class in a message."""
    paths = re.findall(rf"{UNKNOWN}[^\n]*?class_path='([\w.]+)'", message)
    found = [path for *_, path in paths] or re.findall(r"given class_path '([\w.]+)'", re.split(UNKNOWN, message)[0])
    named: Any = resolve(found[-1]) if found else None  # imports nothing
    if not isinstance(named, type):
        return None
    try:
        parameters = own_of(named) if issubclass(named, norms.Norm) else list(signature(named).parameters.values())
    except ValueError:  # a class that is not written in Python
        return None
    variadic = (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
    names = [
        p.name for p in parameters if p.kind not in variadic and not (p.name in PASSED and p.default is Parameter.empty)
    ]
    return named.__name__, names


def nearest(given: str, known: Iterable[str], prefix: str = "", cutoff: float = 0.4) -> str:
    """A question with the names most similar to the given one."""
    close = get_close_matches(given, list(known), n=3, cutoff=cutoff)
    return f" Did you mean {' or '.join(prefix + name for name in close)}?" if close else ""


def nearest_key(given: str, options: Iterable[str]) -> str:
    """The same for a key with dots, by the first part that does not exist."""
    known = [option for option in options if not option.endswith(".help")]
    above = ""
    for part in given.split("."):
        here = {option.removeprefix(above).split(".")[0] for option in known if option.startswith(above)}
        if part not in here:
            return nearest(f"{above}{part}", [f"{above}{name}" for name in sorted(here) if name])
        above += f"{part}."
    return ""


def subclasses(room: object, base: type) -> list[str]:
    """The names of a module's classes that are derived from a base."""
    return [n for n, c in vars(room).items() if isinstance(c, type) and issubclass(c, base) and c is not base]


def find_input_error(error: BaseException | None) -> InputError | None:
    """The `InputError` in a chain of exceptions, if there is one."""
    while error is not None:
        if isinstance(error, InputError):
            return error
        error = error.__cause__ or error.__context__
    return None
