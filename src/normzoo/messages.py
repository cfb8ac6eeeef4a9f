"""Turns what the argument parser says into one message: what was given, the rule, the remedy."""

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib import import_module

from normzoo import data, models, norms
from normzoo.norms._base import keyword_defaults

# What can stand under a key, by the key's last part.
CHOICES: dict[str, Callable[[], Iterable[str]]] = {
    "norm": norms.layers,
    "then": norms.layers,
    "net": lambda: subclasses(models, models.Network),
    "init": lambda: subclasses(models, models.Init),
    "data": lambda: subclasses(data, data.ImageData),
}

# Lines of the parser's nested message that say nothing to a user.
NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Given value|Problem with given class_path|Expected a path but"
    r"|Expected a <class 'NoneType'>|Expected a dict|^Parser key"
)


def explain(message: str) -> str:
    """The core of a parser's message, with the choices there are."""
    keys = [part for part in re.findall(r'Parser key "([^"]*)"', message) if part]
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    core = [line for line in lines if line and not NOISE.search(line)] or [lines[-1]]
    if len(lines) == 1:
        core, keys = [re.sub(r'^Parser key "[^"]*": ?', "", lines[0])], keys[:1]
    said = re.sub(
        r"Type \S*Callable\S* \S* ?expects a function or a callable class: ", "", " ".join(dict.fromkeys(core))
    )
    said = re.sub(r'Parser key "[^"]*":\s*', "", said)
    value = re.search(r"Expected a dot import path string: ?([^\s;]*)", said)
    option = re.search(r"Option '([^']*)' is not accepted", said) or re.search(r"Key '([^']*)' is not expected", said)
    if value and (known := sorted(CHOICES.get(keys[-1] if keys else "", tuple)())):
        said = f"there is no {value[1]!r}.{nearest(value[1], known)} Known are {', '.join(known)}; your own goes by its path"
        said += ", as my_package.MyNorm"
    elif option and (arguments := arguments_of(message)):
        said = f"{arguments[0]} takes no {option[1]!r}.{nearest(option[1], arguments[1])} It takes {', '.join(arguments[1])}"
    said = re.sub(r"\.? Got value: Namespace\(.*$", "", said).rstrip(".")
    return f"{'.'.join(keys) + ': ' if keys else ''}{said}."


def arguments_of(message: str) -> tuple[str, list[str]] | None:
    """The name and the arguments of the innermost class that a message speaks of."""
    paths = re.findall(r"class_path='([\w.]+)'", message) or re.findall(r"given class_path '([\w.]+)'", message)
    if not paths:
        return None
    module, name = paths[-1].rsplit(".", 1)
    return name, list(keyword_defaults(getattr(import_module(module), name)))


def nearest(given: str, known: Iterable[str]) -> str:
    """A question after the names most like the one given."""
    close = get_close_matches(given, known, n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def subclasses(room: object, base: type) -> list[str]:
    """The names in a room of the classes derived from a base."""
    return [n for n, c in vars(room).items() if isinstance(c, type) and issubclass(c, base) and c is not base]
