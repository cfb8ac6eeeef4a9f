"""Turns what the argument parser says into one message: what was given, the rule, the remedy."""

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any

from normzoo import data, models, norms
from normzoo.errors import InputError
from normzoo.runs.allowed import resolve

# What can stand under a key, by the key's last part.
CHOICES: dict[str, Callable[[], Iterable[str]]] = {
    "norm": norms.layers,
    "then": norms.layers,
    "net": lambda: subclasses(models, models.Network),
    "init": lambda: subclasses(models, models.Init),
    "data": lambda: subclasses(data, data.ImageData),
}

# Lines of the parser's nested message that say nothing to a user: its own types, and the alternatives not meant.
NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Given value|Problem with given class_path|Expected a path but"
    r"|Expected a <class 'NoneType'>"
)
KEY = re.compile(r'Parser key "([^"]*)":\s*')
# What a class is given by the network, the task or the data set, not by the user.
HANDED_OVER = {"num_features", "input_shape", "num_classes", "params", "optimizer"}
WRAPPING = re.compile(r"Type \S*Callable\S* ?\S* expects a function or a callable class: ")


def explain(message: str, options: Iterable[str] = ()) -> str:
    """The core of a parser's message: which key, what was wrong, and the choices there are.

    Args:
        message: the parser's.
        options: all that the parser takes, without their dashes.
    """
    keys, said = innermost(message) if KEY.search(message) else ([], " ".join(message.split()))
    path = ".".join(keys)
    unknown_class = re.search(r"Expected a dot import path string: ?(\S*)", said)
    unknown_option = re.search(r"[Oo]ption '([^']*)' is not accepted|Key '([^']*)' is not expected", said)
    known = sorted(CHOICES.get(keys[-1] if keys else "", tuple)())
    taken = arguments_of(message)
    if unknown_option and taken:
        name = (unknown_option[1] or unknown_option[2]).split(".")[0]
        close = nearest(name, [*taken[1], "class_path", "init_args"])
        said = f"{taken[0]} takes no {name!r}.{close} It takes {', '.join(taken[1]) or 'nothing'}"
    elif several := re.search(r"Multiple subclasses with name (\w+)\..* ambiguity: ([\w., ]+)", message):
        said = f"there are several {several[1]}; give the path of one: {several[2]}"
    elif unknown_class:
        name = unknown_class[1]
        choices = f" Known are {', '.join(known)}." if known else ""
        said = f"there is no {name!r}.{nearest(name, known)}{choices} Your own goes by its path, my_package.{name}"
    elif said.startswith("unrecognized arguments"):
        name = said.split()[-1].lstrip("-").split("=")[0]
        rule = "options of the network are under --model.net, of the task under --model"
        said = f"{said}.{nearest(name, options, prefix='--')} {rule[0].upper()}{rule[1:]}"
    elif unaccepted := re.search(r"does not accept option '([^']*)'", said):
        said = f"{said}.{nearest_key(unaccepted[1], options)}"
    elif said.startswith("Expected a"):
        said = f"expected {expected(message) or 'the name of a class'}; got {value_in(message)}"
    elif missing := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", said):
        said = f"there is no '{missing[1]}.{missing[2]}'.{nearest(missing[2], known)}"
    elif base := re.search(r"^Not a valid subclass of (\w+)", said):
        said = f"expected the name of a {base[1]}, or class_path and init_args of one"
    elif base := re.search(r"Expected '([\w.]+)' to be .*?<class '(?:[\w.]+\.)?(\w+)'>", said):
        said = f"{base[1]!r} is no {base[2]}, and does not build one"
    return f"{path + ': ' if path else ''}{said.rstrip('.')}{'' if said.endswith('?') else '.'}"


def cause(error: Exception) -> str:
    """What went wrong when a class was built, of all that the parser says about it."""
    found = re.search(r"^ *- (.*)$", str(error), re.MULTILINE) if "Errors:" in str(error) else None
    return found[1] if found else str(error)


def innermost(message: str) -> tuple[list[str], str]:
    """The keys that lead to the first thing a nested message says, and that thing."""
    stack: list[tuple[int, str]] = []
    for line in message.splitlines():
        indent, text = len(line) - len(line.lstrip()), WRAPPING.sub("", line.strip().removeprefix("- "))
        while stack and stack[-1][0] >= indent > 0:
            stack.pop()
        while key := KEY.match(text):
            stack.append((indent, key[1]))
            text = text[key.end() :]
        if text and not NOISE.search(text):
            return [key for _, key in stack], re.sub(r"\.? Got value: Namespace\(.*$", "", text)
    return [key for _, key in stack], message.strip().splitlines()[-1].strip()


def arguments_of(message: str) -> tuple[str, list[str]] | None:
    """The name and the arguments of the innermost class that a message speaks of."""
    unknown = r"(?:[Oo]ption '[^']*' is not accepted|Key '[^']*' is not expected)"
    paths = re.findall(unknown + r"[^\n]*?class_path='([\w.]+)'", message) or re.findall(
        r"given class_path '([\w.]+)'", re.split(unknown, message)[0]
    )
    if not paths:
        return None
    named: Any = resolve(paths[-1])  # imports nothing: what a message quotes may be anybody's words
    if not isinstance(named, type):
        return None
    try:
        parameters = signature(named).parameters
    except ValueError:  # a class that is not written in Python
        return None
    names = [
        name
        for name, parameter in parameters.items()
        if parameter.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
        and not (name in HANDED_OVER and parameter.default is Parameter.empty)
    ]
    return paths[-1].rsplit(".", 1)[-1], names


def expected(message: str) -> str:
    """All that a message says could stand there."""
    found = re.findall(r"Expected an? <class '([\w.]+)'>", message)
    types = dict.fromkeys("list" if name in ("collections.abc.Sequence", "tuple") else name for name in found)
    words = dict.fromkeys(re.findall(r"Expected an? typing.Literal\[(.*?)\]", message))
    kinds = [f"a value of type {name}" for name in types if name != "NoneType"]
    return " or ".join(kinds + [f"one of {', '.join(words)}"] * bool(words))


def value_in(message: str) -> str:
    """The value that a message is about."""
    value = re.search(
        r"(?:Got|Given) value: (?!Namespace|NestedArg)([^\n]*?)(?:\. Got value: .*)?$", message, re.MULTILINE
    )
    if not value:
        return "another value"
    return repr(value[1] if len(value[1]) <= 200 else f"{value[1][:100]} ... {value[1][-20:]}")


def nearest(given: str, known: Iterable[str], prefix: str = "") -> str:
    """A question after the names most like the one given."""
    close = get_close_matches(given, list(known), n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(prefix + name for name in close)}?" if close else ""


def nearest_key(given: str, options: Iterable[str]) -> str:
    """The same for a key with dots, of which the first part that nobody knows is the wrong one."""
    known = [option for option in options if not option.endswith(".help")]
    above = ""
    for part in given.split("."):
        here = {option.removeprefix(above).split(".")[0] for option in known if option.startswith(above)}
        if part not in here:
            return nearest(f"{above}{part}", [f"{above}{name}" for name in sorted(here) if name])
        above += f"{part}."
    return ""


def subclasses(room: object, base: type) -> list[str]:
    """The names in a room of the classes derived from a base."""
    return [n for n, c in vars(room).items() if isinstance(c, type) and issubclass(c, base) and c is not base]


def find_input_error(error: BaseException | None) -> InputError | None:
    """The `InputError` that a chain of exceptions began with, if one did."""
    while error is not None:
        if isinstance(error, InputError):
            return error
        error = error.__cause__ or error.__context__
    return None
