"""The settings of a grid: each a flag of `normzoo fit`, and the values to try."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

from normzoo.errors import InputError

SHORT = {"norm": "model.net.norm", "seed": "seed_everything"}
MOST = 10_000
"""The most values of a range, and the most cells of a grid."""
CLOSING = {"(": ")", "[": "]", "{": "}"}
EXAMPLE = "norm=BatchNorm,NoNorm seed=0..4 model.optimizer.lr=0.01,0.1"

Settings = dict[str, list[Any]]
Cell = dict[str, Any]


def parse(arguments: Sequence[str]) -> Settings:
    """The settings in arguments such as `norm=BatchNorm,GroupNorm(num_groups=4)` and `seed=0..4`.

    Raises:
        InputError: an argument is no setting; it has no value, one twice, or a range that is empty or has no end.
    """
    found: Settings = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            raise InputError(f"{argument!r}: expected a setting and its values, as in {EXAMPLE}.")
        key = short(key)
        if key in found:
            raise InputError(f"{key} is given twice: give all its values at once, {key}=A,B.")
        found[key] = values(key, text)
    return found


def short(key: str) -> str:
    """The short name of a setting that has one."""
    return next((name for name, long in SHORT.items() if key == long), key)


def values(key: str, given: Any) -> list[Any]:
    """The values of a setting: a text with commas and ranges, or a list, as YAML has it.

    Raises:
        InputError: there is none, or one twice; a range is empty or has no end; a seed is no whole number.
    """
    parts = split(key, given) if isinstance(given, str) else given if isinstance(given, list) else [given]
    several = [one for part in parts for one in (in_range(key, part) if isinstance(part, str) else [part])]
    if not several or any(one is None or one == "" for one in several):
        raise InputError(f"{key}={given}: a value is empty; give one or more, separated by commas.")
    if key == "seed" and (wrong := [one for one in several if type(one) is not int or not 0 <= one < 2**32]):
        raise InputError(f"seed={given}: {shown(wrong[0])} is no seed, which is a whole number from 0 to {2**32 - 1}.")
    twice = [one for place, one in enumerate(several) if one in several[:place]]
    if twice:
        raise InputError(f"{key}={given}: {shown(twice[0])} is there twice; each value makes cells of its own.")
    return several


def split(key: str, text: str) -> list[str]:
    """The parts between the commas that no bracket encloses.

    Raises:
        InputError: a bracket is not closed, or was not opened.
    """
    parts, open_brackets = [""], ""
    for letter in text:
        if letter in CLOSING:
            open_brackets += CLOSING[letter]
        elif letter in CLOSING.values():
            if not open_brackets.endswith(letter):
                raise InputError(f"{key}={text}: {letter!r} closes no bracket.")
            open_brackets = open_brackets[:-1]
        if letter == "," and not open_brackets:
            parts.append("")
        else:
            parts[-1] += letter
    if open_brackets:
        raise InputError(f"{key}={text}: {open_brackets[-1]!r} is missing.")
    return [part.strip() for part in parts]


def in_range(key: str, text: str) -> list[Any]:
    """The whole numbers from A to B, both included, for `A..B`; else the text, as a number if it is one.

    Raises:
        InputError: the range is empty, has no end, or is too long.
    """
    number = r"(-?\d*(?:\.\d+)?)"
    ends = re.fullmatch(rf"{number}\.\.{number}", text)
    if not ends:
        return [plain(text)]
    if not all(re.fullmatch(r"-?\d+", end) for end in ends.groups()):
        raise InputError(f"{key}={text}: a range has two whole numbers, as in 0..4; list other values: 0.01,0.1.")
    first, last = map(int, ends.groups())
    if last < first:
        raise InputError(f"{key}={text}: the range is empty, as {last} is less than {first}; write {last}..{first}.")
    if last - first >= MOST:
        raise InputError(f"{key}={text}: the range has {last - first + 1} values; at most {MOST} are possible.")
    return list(range(first, last + 1))


def plain(text: str) -> Any:
    """A number as a number, other text as it is."""
    try:
        number = json.loads(text)
    except ValueError:
        number = text
    return number if isinstance(number, int | float) and not isinstance(number, bool) else text


def cells(settings: Settings) -> list[Cell]:
    """All combinations; all with the first seed come before those with the second: a part of a grid can be compared.

    Raises:
        InputError: there are too many.
    """
    if (count := prod(map(len, settings.values()))) > MOST:
        raise InputError(f"the grid has {count} cells; at most {MOST} are possible.")
    slow = sorted(settings, key=lambda key: key != "seed")
    every = product(*(settings[key] for key in slow))
    return [{**dict.fromkeys(settings), **dict(zip(slow, one, strict=True))} for one in every]


def flags(cell: Mapping[str, Any]) -> list[str]:
    """The flags of `normzoo fit` for a cell.

    >>> flags({"norm": "GroupNorm(num_groups=4)", "seed": 1})
    ['--model.net.norm=GroupNorm', '--model.net.norm.num_groups=4', '--seed_everything=1']
    """
    return [flag for key, value in cell.items() for flag in of_value(f"--{SHORT.get(key, key)}", value)]


def of_value(flag: str, value: Any) -> list[str]:
    """A flag with its value; a class with arguments takes a flag for each.

    Raises:
        InputError: the arguments are not those of a class.
    """
    if not isinstance(value, str):
        return [f"{flag}={json.dumps(value)}"]
    if not (called := re.fullmatch(r"([A-Za-z_][\w.]*)\(.*\)", value)):
        return [f"{flag}={value}"]
    try:
        call: Any = ast.parse(value, mode="eval").body
        given = {one.arg: ast.literal_eval(one.value) for one in call.keywords}
        if call.args or None in given or ast.unparse(call.func) != called[1]:
            raise ValueError(value)
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{value}: expected arguments by name, as in GroupNorm(num_groups=4).") from error
    return [f"{flag}={called[1]}", *(f"{flag}.{name}={text(one)}" for name, one in given.items())]


def text(value: Any) -> str:
    """A value as a flag has it."""
    return value if isinstance(value, str) else json.dumps(value)


def shown(value: Any) -> str:
    """A value in a table."""
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)
