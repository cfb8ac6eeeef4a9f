"""Which packages a config file or a checkpoint may name: they are data, and data decides nothing about code to import.

Three rules, each of which holds without the others:

- A path of a class leads into a package that is allowed, or is refused before anything is imported.
- What the path leads to was defined in an allowed package: `torch.os.system` is not torch's.
- It is a class, or one of the few functions of these packages that make a network or map tensors: `torch.hub.load`,
  which fetches code, is torch's own and neither of the two.
"""

import argparse
import importlib.util
import inspect
import os
import re
import sys
import typing
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from normzoo.errors import InputError

PACKAGES = ("normzoo", "torch", "torchvision", "torchmetrics", "lightning")

FLAG = "--allow"
VARIABLE = "NORMZOO_ALLOW"  # what the flag says as well, so that the processes of other ranks know it

# Flags whose values are places and names, never classes.
PLACES = {"-c", "--config", "--ckpt_path", "--change", "--experiment", "--runs", "--output", "--data.root"}

# Whose functions map tensors to tensors, or fill them.
OF_TENSORS = ("torch.nn.functional", "torch.nn.init", "torch.special")

# Whose functions that return a module may be called: torch itself also has some that make one of a text of code.
MAKERS = ("normzoo", "torchvision.models", "torch.nn.utils")

# What reads or runs code, of the allowed packages themselves.
CODE = (
    *("torch.hub", "torch.jit", "torch.ops", "torch.classes", "torch.package", "torch.utils.cpp_extension"),
    *("torch.load", "torch.serialization", "torch.export", "torch.distributed.rpc", "torch.distributed.elastic"),
    *("torch.fx", "torch.distributed.launcher", "torch.distributed.nn", "torch.utils.benchmark", "torch.testing"),
    *("lightning.pytorch.cli", "lightning.fabric.cli", "torchvision.datasets.lsun"),
)


def allowed() -> set[str]:
    """The packages that a file may name classes of: `PACKAGES` and the user's own, of `NORMZOO_ALLOW`."""
    return {*PACKAGES, *split(os.environ.get(VARIABLE, ""))}


def split(names: str) -> list[str]:
    """The names in a list with commas."""
    return [name.strip() for name in names.split(",") if name.strip()]


def allow(names: Iterable[str]) -> None:
    """Allows packages for the rest of this process and the processes it starts.

    Raises:
        InputError: what is named is no package, or one that comes with Python.
    """
    known = split(os.environ.get(VARIABLE, ""))
    for name in [*known, *names]:
        if not name.isidentifier():
            raise InputError(f"{FLAG}={name}: it takes the name of a package, as in {FLAG}=my_norms or {FLAG}=a,b.")
        if name in sys.stdlib_module_names or name == "jsonargparse":
            raise InputError(
                f"{FLAG}={name}: {name} can run anything, and holds no networks; allow packages of your own."
            )
    os.environ[VARIABLE] = ",".join(dict.fromkeys([*known, *names]))


def take_flags(arguments: Sequence[str]) -> list[str]:
    """Allows what `--allow` names, and returns the other arguments.

    So are the packages of classes that the user typed as the value of a flag: that is a word of his own, as
    `python my_norms.py` would be. What stands in a file that he names is not.
    """
    rest, names = [], []
    pending = iter(arguments)
    for argument in pending:
        flag, _, value = argument.partition("=")
        if flag == FLAG:
            given = split(value if "=" in argument else next(pending, ""))
            if not given:
                raise InputError(f"{argument}: it takes the name of a package, as in {FLAG}=my_norms or {FLAG}=a,b.")
            names += given
        else:
            rest.append(argument)
    allow([*names, *(name for name in typed(rest) if name not in (*PACKAGES, "jsonargparse"))])
    return rest


def again() -> str:
    """What a command that is proposed to the user needs beside, for the classes of his own that this one may name."""
    names = split(os.environ.get(VARIABLE, ""))
    return f" {FLAG}={','.join(names)}" if names else ""


def typed(arguments: Sequence[str]) -> Iterator[str]:
    """The packages of the classes that are named by flags themselves."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, equals, value = argument.partition("=")
        if not flag.startswith("--") or flag in PLACES:
            continue
        path = value if equals else following
        # A file would be read as settings, and holds the words of somebody else.
        if is_path(path) and not os.path.exists(path) and path.split(".")[0] not in sys.stdlib_module_names:
            yield path.split(".")[0]


def reads_code(path: str) -> bool:
    """Whether a path is of what reads or runs code, though its package is allowed."""
    return f"{path}.".startswith(tuple(f"{one}." for one in CODE))


def is_path(value: Any) -> bool:
    """Whether a value is text that could be the path of a class, such as "my_norms.MaxNorm"."""
    return isinstance(value, str) and "." in value and all(part.isidentifier() for part in value.split("."))


def require_allowed(path: str, where: str) -> None:
    """Raises `InputError` unless a path leads into an allowed package; imports nothing.

    Args:
        path: of a class, as "torch.nn.ReLU"; a name without dots is of a class that is known already.
        where: what names it: a file and the key in it.
    """
    parts = path.split(".")
    if len(parts) == 1:
        return
    rule = f"settings may name classes of {', '.join(PACKAGES[:-1])} and {PACKAGES[-1]}"
    if parts[0] in allowed():
        if parts[0] in PACKAGES and any(part.startswith("_") for part in parts):
            raise InputError(f"{where} names {path!r}: {rule} that are public, and _ marks what is not; name another.")
        if reads_code(path):
            raise InputError(f"{where} names {path!r}: that reads or runs code, which is not for settings to ask.")
        return
    if parts[0] in sys.stdlib_module_names or parts[0] == "jsonargparse":
        raise InputError(f"{where} names {path!r}: {rule}, and none that can run anything; name a class of these.")
    close = get_close_matches(parts[0], PACKAGES, n=1, cutoff=0.8)
    meant = f" Did you mean {close[0]}?" if close else ""
    raise InputError(
        f"{where} names {path!r}: {rule}, since importing others runs their code.{meant} If you trust {parts[0]}, "
        f"allow it: {FLAG}={parts[0]}, or {VARIABLE}={parts[0]} in the environment."
    )


def check_class_paths(config: Any, source: str, *, strings: bool = True) -> None:
    """Raises `InputError` if settings name a class of a package that is not allowed; imports nothing.

    Args:
        config: dicts, lists and values, as from YAML or a checkpoint's hyperparameters.
        source: where they come from, for the message.
        strings: look at all text that begins with the name of a package that could be imported, not only at what
            stands under `class_path`: for settings that no parser of ours will look at.
    """
    pending: list[tuple[str, Any]] = [("", config)]
    seen: set[int] = set()
    while pending:
        key, value = pending.pop()
        if isinstance(value, str) and is_path(value):
            if key.rsplit(".", 1)[-1] == "class_path" or (strings and importable(value.split(".")[0])):
                require_allowed(value, f"{source}: {key}" if key else source)
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            pending += [(f"{key}.{name}" if key else str(name), child) for name, child in reversed(list(pairs))]


def importable(package: str) -> bool:
    """Whether there is a package or module of that name; does not import it."""
    try:
        return package in sys.modules or importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def check_callables(settings: Any, sources: dict[str, str]) -> None:
    """Raises `InputError` if parsed settings hold a function that data may not call, or a class that hides one.

    Args:
        settings: a tree of mappings and lists, where paths of functions have become functions.
        sources: the files that were read, and their text, to tell which one names it.
    """
    for path, found in callables(settings):
        if not acceptable(path, found):
            where, written = origin(path, sources)
            raise InputError(
                f"{where} names {written!r}: settings name classes, functions of tensors "
                f"(torch.nn.functional) and functions that return a torch.nn.Module; this is none of these."
            )


def callables(settings: Any) -> Iterator[tuple[str, Any]]:
    """The path and the object of everything in settings that will be called."""
    pending, seen = [settings], set()
    while pending:
        value = pending.pop()
        if isinstance(value, list | tuple):
            pending += value
        elif isinstance(value, dict | argparse.Namespace):
            if id(value) in seen:
                continue
            seen.add(id(value))
            children = value if isinstance(value, dict) else vars(value)
            path = children.get("class_path")
            if isinstance(path, str) and is_path(path):
                yield path, resolve(path)
            pending += children.values()
        elif inspect.isroutine(value):
            yield f"{getattr(value, '__module__', None) or 'torch'}.{value.__qualname__}", value


def resolve(path: str) -> Any:
    """The object at a path that the parser has imported already; None where there is none."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(parts[:end]))
        if found is not None:
            for part in parts[end:]:
                found = getattr(found, part, None)
            return found
    return None


def acceptable(path: str, found: Any) -> bool:
    """Whether data may have an object called: see this module's rules. What is the user's own is not looked at."""
    package = path.split(".")[0]
    if found is None or package not in PACKAGES:
        return found is None or package in allowed()
    if reads_code(path):
        return False
    if inspect.isclass(found):
        home = found.__module__ or ""
        return home.split(".")[0] in allowed() and not reads_code(f"{home}.{found.__qualname__}")
    name = getattr(found, "__name__", "")
    if any(getattr(sys.modules.get(one), name, None) is found for one in OF_TENSORS):
        return True
    torch: Any = sys.modules.get("torch")
    if torch is not None and getattr(torch, name, None) is found and hasattr(torch.Tensor, name):
        return True
    is_maker = f"{getattr(found, '__module__', '')}.".startswith(tuple(f"{maker}." for maker in MAKERS))
    return is_maker and inspect.isfunction(found) and "." not in found.__qualname__ and returns_module(found)


def returns_module(function: Any) -> bool:
    """Whether a function says that it returns a torch.nn.Module, as torchvision.models.resnet18 does."""
    try:
        returned = typing.get_type_hints(function).get("return")
    except (NameError, TypeError, AttributeError):
        returned = getattr(function, "__annotations__", {}).get("return")
    bases = inspect.getmro(returned) if inspect.isclass(returned) else ()
    return any((base.__module__, base.__qualname__) == ("torch.nn.modules.module", "Module") for base in bases)


def origin(path: str, sources: dict[str, str]) -> tuple[str, str]:
    """Which file names a path, and how it is written there: the same, or another that leads to it."""
    last = re.escape(path.rsplit(".", 1)[-1])
    for pattern in (rf"(?<![\w.]){re.escape(path)}(?![\w.])", rf"(?<![\w.])(?:\w+\.)+{last}(?![\w.])"):
        for file, text in sources.items():
            if found := re.search(pattern, text):
                return file, found[0]
    return "the command line", path


def refusal(message: str, sources: dict[str, str]) -> InputError | None:
    """What to say where the parser's message is that it may not import something, if it is."""
    denied = re.search(r"Importing '([\w.]+)' is not allowed", message)
    if not denied:
        return None
    where, written = origin(denied[1], sources)
    through = f"{where} names {written!r}, which" if written != denied[1] else where
    try:
        require_allowed(denied[1], through)
    except InputError as error:
        return error
    return InputError(f"{where} names {written!r}, which settings may not name.")
