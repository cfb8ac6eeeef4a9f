"""Which classes and functions config files and checkpoints may name: they are data, and must not run code.

jsonargparse imports from allowed packages only, and denies what reads or runs code (`CODE`). Of functions, `is_allowed`
accepts only those that map tensors or return a module.
"""

import argparse
import inspect
import os
import re
import site
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib import metadata
from itertools import pairwise
from typing import Any

from normzoo.errors import InputError

PACKAGES = ("normzoo", "torch", "torchvision", "torchmetrics", "lightning")

FLAG = "--allow"
VARIABLE = "NORMZOO_ALLOW"  # set by the flag too, for the processes of other ranks
GROUP = "normzoo.packages"  # the entry points of installed packages that need no flag

# Flags whose values are paths and names, never classes.
NOT_CLASSES = {"-c", "--config", "--ckpt_path", "--change", "--experiment", "--runs", "--output", "--data.root"}

# Modules of functions that map or fill tensors, and of functions that build networks.
OF_TENSORS = ("torch.nn.functional", "torch.nn.init", "torch.special")
BUILDERS = ("normzoo.", "torchvision.models.", "torch.nn.utils.")

# Parts of the allowed packages that read or run code.
CODE = (
    *("torch.hub", "torch.jit", "torch.ops", "torch.classes", "torch.package", "torch.utils.cpp_extension"),
    *("torch.load", "torch.serialization", "torch.export", "torch.distributed.rpc", "torch.distributed.elastic"),
    *("torch.fx", "torch.distributed.launcher", "torch.distributed.nn", "torch.utils.benchmark", "torch.testing"),
    *("lightning.pytorch.cli", "lightning.fabric.cli", "torchvision.datasets.lsun"),
)


def split(names: str) -> list[str]:
    """The names in a list with commas."""
    return [name.strip() for name in names.split(",") if name.strip()]


def allowed() -> set[str]:
    """The packages whose classes a file may name: `PACKAGES`, and the user's own, installed or from `NORMZOO_ALLOW`."""
    return {*PACKAGES, *installed(), *split(os.environ.get(VARIABLE, ""))}


@cache
def installed() -> frozenset[str]:
    """The installed packages that declare an entry point of the group `normzoo.packages`.

    Reads site-packages only. The working directory is on the path too, and may be the folder of a stranger.
    """
    folders = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    points = [point for one in metadata.distributions(path=folders) for point in one.entry_points]
    return frozenset(point.module.split(".")[0] for point in points if point.group == GROUP)


def again() -> str:
    """The flag to append to a proposed command, for the packages that this one allows."""
    names = split(os.environ.get(VARIABLE, ""))
    return f" {FLAG}={','.join(names)}" if names else ""


def allow(names: Iterable[str]) -> None:
    """Allows packages for this process and those that it starts.

    Raises:
        InputError: a name is not that of a package, or is one that comes with Python.
    """
    every = list(dict.fromkeys([*split(os.environ.get(VARIABLE, "")), *names]))
    for name in every:
        if not name.isidentifier():
            first = name.split(".")[0] if name.split(".")[0].isidentifier() else "my_norms"
            raise InputError(f"{FLAG}={name}: expected the name of a package, as in {FLAG}={first} or {FLAG}=a,b.")
        if name in sys.stdlib_module_names or name == "jsonargparse":
            raise InputError(f"{FLAG}={name}: {name} can run anything; allow packages of your own only.")
    os.environ[VARIABLE] = ",".join(every)


def take_flags(arguments: Sequence[str]) -> list[str]:
    """Allows the packages that `--allow` names and those of classes typed as flags; returns the other arguments."""
    rest, names = [], []
    pending = iter(arguments)
    for argument in pending:
        flag, equals, value = argument.partition("=")
        if flag != FLAG:
            rest.append(argument)
            continue
        given = split(value if equals else next(pending, ""))
        if not given:
            raise InputError(f"{argument}: expected the name of a package, as in {FLAG}=my_norms or {FLAG}=a,b.")
        names += given
    allow([*names, *typed(rest)])
    return rest


def typed(arguments: Sequence[str]) -> Iterator[str]:
    """The packages of the user's own classes that flags name; a file of that name is read as settings."""
    for argument, following in pairwise([*arguments, ""]):
        flag, equals, value = argument.partition("=")
        path = value if equals else following
        if flag.startswith("--") and flag not in NOT_CLASSES and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", path):
            package = path.split(".")[0]
            known = {*sys.stdlib_module_names, *PACKAGES, *installed(), "jsonargparse"}
            if not os.path.exists(path) and package not in known:
                yield package


def refusal(message: str, sources: Mapping[str, str] = {}) -> InputError | None:
    """The error for a parser's message that an import is not allowed, None for another message.

    Args:
        message: the parser's.
        sources: the config files and their text.
    """
    denied = re.search(r"Importing '(([\w]+)[\w.]*)' is not allowed", message)
    if not denied:
        return None
    path, package = denied.groups()
    rule = f"{origin(path, sources)} names {path!r}: files may name public classes of {', '.join(PACKAGES)}"
    if package in PACKAGES:
        return InputError(f"{rule}, except what reads or runs code; name another.")
    if package in sys.stdlib_module_names or package == "jsonargparse":
        return InputError(f"{rule}, and none that can run anything; name one of these.")
    close = get_close_matches(package, PACKAGES, n=1, cutoff=0.8)
    meant = f" Did you mean {close[0]}?" if close else ""
    return InputError(
        f"{rule}, since importing others runs their code.{meant} If you trust {package}, allow it: {FLAG}={package}, "
        f"or {VARIABLE}={package} in the environment."
    )


def origin(path: str, sources: Mapping[str, str]) -> str:
    """The file that names a path, else the command line; by its last part where another path leads to the same."""
    for name in (path, path.rsplit(".", 1)[-1]):
        for file, text in sources.items():
            if re.search(rf"\b{re.escape(name)}\b", text):
                return file
    return "the command line"


def check_callables(settings: Any, sources: Mapping[str, str] = {}) -> None:
    """Raises `InputError` if parsed settings name a function that data may not call, or a private class.

    Args:
        settings: a tree of mappings and lists, in which the parser has replaced paths of functions by functions.
        sources: the config files and their text, for the message.
    """
    for path, found in callables(settings):
        if not is_allowed(path, found):
            raise InputError(
                f"{origin(path, sources)} names {path!r}: settings may name public classes, functions of tensors "
                f"(torch.nn.functional) and functions that return a torch.nn.Module; this is none of these."
            )


def callables(settings: Any) -> Iterator[tuple[str, Any]]:
    """The path and the object of each class and function in settings."""
    if isinstance(settings, list | tuple):
        for value in settings:
            yield from callables(value)
    elif isinstance(settings, dict | argparse.Namespace):
        children = settings if isinstance(settings, dict) else vars(settings)
        if isinstance(path := children.get("class_path"), str):
            yield path, resolve(path)
        yield from callables([*children.values()])
    elif inspect.isroutine(settings):
        yield f"{getattr(settings, '__module__', None) or 'torch'}.{settings.__qualname__}", settings


def resolve(path: str) -> Any:
    """The object at a path that has been imported already, else None."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(parts[:end]))
        if found is not None:
            for part in parts[end:]:
                found = getattr(found, part, None)
            return found
    return None


def is_allowed(path: str, found: Any) -> bool:
    """Whether data may name this class or function. Packages that the user allows may hold anything."""
    package = path.split(".")[0]
    if found is None or package not in PACKAGES:
        return found is None or package in allowed()
    if any(part.startswith("_") for part in path.split(".")) and inspect.isclass(found):
        return False
    if inspect.isclass(found):
        return True
    torch: Any = sys.modules.get("torch")
    name = getattr(found, "__name__", "")
    if any(getattr(sys.modules.get(module), name, None) is found for module in OF_TENSORS):
        return True
    if torch is not None and getattr(torch, name, None) is found and hasattr(torch.Tensor, name):
        return True
    is_builder = f"{getattr(found, '__module__', '')}.".startswith(BUILDERS) and inspect.isfunction(found)
    return is_builder and "." not in found.__qualname__ and returns_module(found)


def returns_module(function: Any) -> bool:
    """Whether the annotation of a function says that it returns a torch.nn.Module."""
    try:
        returned = typing.get_type_hints(function).get("return")
    except (NameError, TypeError, AttributeError):
        return False
    bases = inspect.getmro(returned) if inspect.isclass(returned) else ()
    return any((base.__module__, base.__qualname__) == ("torch.nn.modules.module", "Module") for base in bases)
