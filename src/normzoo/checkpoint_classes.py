"""Which classes a checkpoint may name: what stands in it is imported and called when its network is built anew."""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pydoc import locate
from typing import Any

from normzoo.errors import InputError
from normzoo.imports import FLAG, PACKAGES, VARIABLE, importable, split

# Packages whose classes anybody's checkpoint may name.
TRUSTED = (*PACKAGES, "pytorch_lightning")
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def require_trusted(hyper_parameters: Mapping[str, Any], file: object) -> None:
    """Raises `InputError`, before anything is imported, if hyperparameters name a class that may be anything.

    Args:
        hyper_parameters: of a checkpoint.
        file: the checkpoint's, for the message.
    """
    for key, path in named(hyper_parameters):
        if not is_trusted(path):
            raise InputError(
                f"ckpt_path={str(file)!r} names {key}={path!r}, which is neither of {', '.join(TRUSTED[:5])} nor of a "
                f"module that this program has imported: to build it could run any code. If you trust it, allow its "
                f"package: {FLAG}={path.partition('.')[0]}, or {VARIABLE}={path.partition('.')[0]} in the environment; "
                f"if not, do not use this checkpoint."
            )


def named(value: Any, key: str = "hyper_parameters") -> Iterator[tuple[str, str]]:
    """All texts in hyperparameters that a parser could take for the path of a class, each with its key."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from named(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple | set):
        for place, inner in enumerate(value):
            yield from named(inner, f"{key}[{place}]")
    elif isinstance(value, str):
        always = key.endswith(("class_path", "_instantiator"))
        if always or (DOTTED.fullmatch(value) and importable(value.partition(".")[0])):
            yield key, value


def is_trusted(path: str) -> bool:
    """Whether the path of a class or function leads into a trusted package, or into a module of the program's own.

    So are those that the user allows by `NORMZOO_ALLOW`. A trusted package imports others: `torch.os.system` is the
    system's, and not torch's.
    """
    if not DOTTED.fullmatch(path):
        return False
    top, module, name = path.partition(".")[0], *path.rpartition(".")[::2]
    if top in split(os.environ.get(VARIABLE, "")) and top not in sys.stdlib_module_names:
        return True
    target = locate(path) if top in TRUSTED else getattr(sys.modules.get(module), name, None)
    home = str(getattr(target, "__module__", None) or "").partition(".")[0]
    if top in TRUSTED:
        return home in TRUSTED
    return isinstance(target, type) and home not in sys.stdlib_module_names
