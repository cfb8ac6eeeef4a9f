"""Which classes a checkpoint may name: what stands in it is imported and called when its network is built anew."""

import importlib.util
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pydoc import locate
from typing import Any

import jsonargparse
import yaml

from normzoo.errors import InputError
from normzoo.runs.allowed import CODE, FLAG, PACKAGES, VARIABLE, allowed, split
from normzoo.runs.allowed import is_allowed as acceptable
from normzoo.runs.config_files import load, read_text

# What Lightning lets build a module anew.
INSTANTIATORS = ("lightning.pytorch.cli.instantiate_module", "pytorch_lightning.cli.instantiate_module")
MOST_FILES = 5


def require_trusted(hyper_parameters: Mapping[str, Any], file: object) -> None:
    """Raises `InputError`, before anything is imported, if hyperparameters name a class that may be anything.

    Args:
        hyper_parameters: of a checkpoint.
        file: the checkpoint's, for the message.
    """
    for key, path in named(hyper_parameters):
        if not (path in INSTANTIATORS if key.endswith("._instantiator") else is_trusted(path)):
            raise InputError(
                f"ckpt_path={str(file)!r} names {key}={path!r}, which is neither of {', '.join(PACKAGES)} nor of a "
                f"module that this program has imported: to build it could run any code. If you trust it, allow its "
                f"package: {FLAG}={path.partition('.')[0]}, or {VARIABLE}={path.partition('.')[0]} in the environment; "
                f"if not, do not use this checkpoint."
            )


@contextmanager
def trusted_only(hyper_parameters: Mapping[str, Any], file: object) -> Iterator[None]:
    """Has a program in Python build what hyperparameters say while nothing else than they name openly can be imported.

    Raises:
        InputError: they name a class that may be anything.
    """
    require_trusted(hyper_parameters, file)
    with limited_to({*allowed(), *(path.partition(".")[0] for _, path in named(hyper_parameters))}):
        yield


def named(value: Any, key: str = "hyper_parameters", files: int = 0) -> Iterator[tuple[str, str]]:
    """All texts in hyperparameters that a parser could take for the path of a class, each with its key.

    A parser also reads what stands in a text as YAML, and in a file that a text names.

    Args:
        value: the hyperparameters, or one of them.
        key: where it stands.
        files: how many texts and files it stands within.
    """
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from named(inner, f"{key}.{name}", files)
    elif isinstance(value, list | tuple | set):
        for place, inner in enumerate(value):
            yield from named(inner, f"{key}[{place}]", files)
    elif isinstance(value, str):
        always = key.endswith(("class_path", "_instantiator")) or files > MOST_FILES
        if always or (is_path(value) and importable(value.partition(".")[0])):
            yield key, value
        elif (inner := written_in(value)) != value:
            yield from named(inner, key, files + 1)


def written_in(text: str) -> Any:
    """What stands in the file that a text names, or in the text itself, as a parser reads it; else the text."""
    try:
        return load(read_text(Path(text)) if Path(text).is_file() else text)
    except (InputError, yaml.YAMLError, ValueError, OverflowError, OSError):
        return text


def is_trusted(path: str) -> bool:
    """Whether the path of a class or function leads to what settings may name, or to a class of the program's own.

    By the rules of `normzoo.runs.allowed`: to a trusted package or one that the user allows by `NORMZOO_ALLOW`; and,
    since a program in Python has no flags, to a module that it has imported.
    """
    if not is_path(path):
        return False
    top, module, name = path.partition(".")[0], *path.rpartition(".")[::2]
    if top in split(os.environ.get(VARIABLE, "")) and top not in sys.stdlib_module_names:
        return True
    if top in PACKAGES:
        if reads_code(path) or any(part.startswith("_") for part in path.split(".")):
            return False
        target: Any = locate(path)
        home = str(getattr(target, "__module__", None) or "").partition(".")[0]
        return home in PACKAGES and (acceptable(path, target) or not callable(target))
    target = getattr(sys.modules.get(module), name, None)
    return isinstance(target, type) and target.__module__.partition(".")[0] not in sys.stdlib_module_names


def reads_code(path: str) -> bool:
    """Whether a path is of what reads or runs code, though its package is allowed."""
    return f"{path}.".startswith(tuple(f"{one}." for one in CODE))


def is_path(value: Any) -> bool:
    """Whether a value is text that could be the path of a class, such as "my_norms.MaxNorm"."""
    return isinstance(value, str) and "." in value and all(part.isidentifier() for part in value.split("."))


def importable(package: str) -> bool:
    """Whether there is a package or module of that name; does not import it."""
    try:
        return package in sys.modules or importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


@contextmanager
def limited_to(packages: Collection[str]) -> Iterator[None]:
    """Has parsers meanwhile import from some packages only."""
    settings = jsonargparse._common.parsing_settings
    before = dict(settings)
    jsonargparse.set_parsing_settings(
        instantiate_subclass_spec_in_any=False,
        import_path_denylist=["*", *CODE],
        import_path_allowlist=sorted(packages),
    )
    try:
        yield
    finally:
        settings.update(before)
