"""Reads a checkpoint without trusting it: its archive, then the names in its pickle, then what it holds."""

import io
import pickle
import pickletools
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from math import isfinite, isnan
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import torch
from torch import Tensor

from normzoo.errors import InputError
from normzoo.runs.seal import digest

# More than any checkpoint has, and little enough to be walked through in seconds.
MOST_BYTES_OF_PICKLE = 100_000_000
MOST_VALUES = 2_000_000
MOST_LEVELS = 100

# Storage in the pickle -> bytes per element.
STORAGES = {
    "torch.DoubleStorage": 8,
    "torch.FloatStorage": 4,
    "torch.HalfStorage": 2,
    "torch.BFloat16Storage": 2,
    "torch.LongStorage": 8,
    "torch.IntStorage": 4,
    "torch.ShortStorage": 2,
    "torch.CharStorage": 1,
    "torch.ByteStorage": 1,
    "torch.BoolStorage": 1,
    "torch.ComplexDoubleStorage": 16,
    "torch.ComplexFloatStorage": 8,
    "torch.storage.UntypedStorage": 1,
}
# What a pickle may name: less than torch allows, which also takes what makes a tensor or an array of any size.
NAMES = frozenset(
    {
        *STORAGES,
        *("collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.complex", "_codecs.encode"),
        *("__builtin__.set", "__builtin__.complex"),  # the same as torch.save writes them, as of Python 2
        *("torch.Size", "torch.device", "torch.nn.parameter.Parameter", "torch.serialization._get_layout"),
        *(f"torch._utils._rebuild_{what}" for what in ("tensor_v2", "tensor_v3", "parameter", "sparse_tensor")),
        *(f"torch._utils._rebuild_{what}" for what in ("parameter_with_state", "qtensor", "meta_tensor_no_storage")),
        *(str(value) for value in vars(torch).values() if isinstance(value, torch.dtype | torch.qscheme)),
    }
)
# What torch's reader of weights takes; all that torch.save writes is among them.
OPCODES = frozenset(
    {
        *("PROTO", "STOP", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "MARK"),
        *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWFALSE", "NEWTRUE", "EMPTY_TUPLE", "EMPTY_LIST"),
        *("EMPTY_DICT", "EMPTY_SET", "BINPERSID", "BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE"),
        *("SHORT_BINSTRING", "LONG1", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT"),
    }
)


def load_checkpoint(file: str | Path | IO[bytes], *, mmap: bool = False) -> dict[str, Any]:
    """The checkpoint in a file, on the CPU, when nothing is wrong with it; no code in it runs.

    A bit that has flipped, a part that is missing and an object that is more than tensors and plain data are refused.
    Weights that are not finite are named in a warning.

    Args:
        file: as `trainer.save_checkpoint` or the command line wrote it; a path, or an open file.
        mmap: leave the tensors in the file, which is a path, until they are used: for a look at the rest.

    Raises:
        InputError: the file is no checkpoint, is damaged, or holds what could run code.
    """
    name = str(file if isinstance(file, str | Path) else getattr(file, "name", file))
    try:
        # The same file to the end, should another take its name meanwhile.
        with Path(file).open("rb") if isinstance(file, str | Path) else nullcontext(file) as stream:
            sizes = require_whole(stream)
            stream.seek(0)
            source: Any = file if mmap else stream
            checkpoint = torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
        require_contents(checkpoint, largest=sum(sizes.values()))
    except Exception as error:  # a file that is broken can make a reader raise anything
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"ckpt_path={name!r} is not a checkpoint that can be read safely ({reason(error)}); give one that "
            f"'normzoo fit' wrote: tensors and plain data only."
        ) from error
    if broken := [key for key, value in checkpoint["state_dict"].items() if not finite(value)]:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        warnings.warn(f"ckpt_path={name!r} holds NaN or infinity in {', '.join(broken[:3])}{more}.", stacklevel=2)
    return checkpoint


def reason(error: Exception) -> str:
    """What was wrong with a file, without the advice of torch to read it all the same."""
    if isinstance(error, pickle.UnpicklingError):
        return "objects whose reading could run code, or a damaged data.pkl"
    lines = (getattr(error, "strerror", None) or str(error)).strip().split(". ")[0].splitlines()
    return lines[0] if lines else type(error).__name__


def finite(value: Tensor) -> bool:
    """Whether every element is a number."""
    if value.device.type == "meta" or not (value.is_floating_point() or value.is_complex()):
        return True
    return bool((value.float() if value.itemsize == 1 else value).isfinite().all())  # float8 knows no isfinite


# The archive.


def require_whole(stream: IO[bytes]) -> dict[str, int]:
    """The sizes of the records of an archive, in bytes, if it is one as `torch.save` writes it and undamaged.

    Two readers of a zip archive can see two archives in it, when it has gaps or overlaps. Here every byte belongs to
    one record, or to the directory, so that torch reads what was checked.
    """
    try:
        archive = ZipFile(stream)
    except BadZipFile:
        raise ValueError("not an archive as torch.save writes it, or cut short") from None
    with archive:
        records = archive.infolist()
        for record in records:
            if record.compress_type != ZIP_STORED or record.file_size != record.compress_size or record.flag_bits & 1:
                raise ValueError(f"{record.filename} in it is compressed, which torch.save does not do")
        require_tiled(stream, archive, records)
        if damaged := archive.testzip():  # torch writes checksums and does not look at them
            raise ValueError(f"{damaged} in it is damaged")
        folder = records[0].filename.split("/")[0] if records else ""
        sizes = {record.filename.removeprefix(f"{folder}/"): record.file_size for record in records}
        if len(sizes) < len(records) or any(not record.filename.startswith(f"{folder}/") for record in records):
            raise ValueError("not an archive as torch.save writes it: records of the same name, or in several folders")
        if "data.pkl" not in sizes or any(name.startswith(("code/", "constants.pkl")) for name in sizes):
            raise ValueError("not an archive as torch.save writes it: no data.pkl in it, or a program")
        if sizes["data.pkl"] > MOST_BYTES_OF_PICKLE:
            raise ValueError(f"its data.pkl has {sizes['data.pkl']:,} bytes, more than a checkpoint needs")
        require_plain(archive.read(f"{folder}/data.pkl"), sizes)
    return sizes


def require_tiled(stream: IO[bytes], archive: ZipFile, records: list[ZipInfo]) -> None:
    """Raises `ValueError` unless records and directory follow each other from the first byte of a file to the last."""
    place = 0
    for record in sorted(records, key=lambda record: record.header_offset):
        if record.header_offset != place:
            raise ValueError(f"{record.filename} in it is damaged: it begins elsewhere")
        stream.seek(place)
        header = stream.read(30)
        place += 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        place += record.file_size
        if record.flag_bits & 8:  # the checksum and the sizes once more, in 32 or 64 bits
            stream.seek(place)
            after = stream.read(28)
            place += 24 if after[24:26] == b"PK" and after[16:18] != b"PK" else 16
    directory = sum(46 + len(record.filename.encode()) + len(record.extra) + len(record.comment) for record in records)
    size = stream.seek(0, 2)
    if archive.start_dir != place or size - place - directory not in (22, 98):  # the end, in 32 or 64 bits
        raise ValueError("not an archive as torch.save writes it: something lies between its parts, or after them")


# The pickle.


class Inert(dict[Any, Any]):
    """Stands for whatever a pickle names: takes what is put into it, and does nothing."""

    path = ""
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __new__(cls, *arguments: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        super().__init__()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __setstate__(self, state: Any) -> None:
        """Takes it."""

    def append(self, value: Any) -> None:
        """Takes it."""

    def extend(self, values: Any) -> None:
        """Takes them."""


class Outline(pickle.Unpickler):
    """Reads a pickle without importing or calling anything, and notes what it names and which tensors it holds."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream)
        self.names: set[str] = set()
        self.storages: list[Any] = []

    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}"
        self.names.add(path)
        return type("Named", (Inert,), {"path": path})

    def persistent_load(self, pid: Any) -> Any:
        self.storages.append(pid)
        return Inert()


def require_plain(pickled: bytes, sizes: Mapping[str, int]) -> None:
    """Raises `ValueError` if a pickle names more than tensors and plain data, or tensors that the archive lacks.

    Args:
        pickled: `data.pkl`.
        sizes: the archive's records, in bytes.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if opcode.name not in OPCODES:
            raise ValueError(f"objects whose reading could run code, by {opcode.name}")
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > count:  # a place that makes a list of gigabytes
            raise ValueError("its data.pkl is damaged")
    outline = Outline(io.BytesIO(pickled))
    outline.load()
    added = {one[1] if isinstance(one, tuple) else f"{one.__module__}.{one.__qualname__}" for one in trusted_by_user()}
    if strange := sorted(outline.names - NAMES - added):
        raise ValueError(f"objects whose reading could run code: {', '.join(strange[:5])}")
    for storage in outline.storages:
        match storage:
            case ("storage", type() as kind, str(key), str(), int(elements)):
                width = STORAGES.get(getattr(kind, "path", ""), 0)
            case _:
                raise ValueError("its data.pkl is damaged: a tensor that is none")
        found = sizes.get(f"data/{key}")
        if found is None or found != width * elements:
            raise ValueError(f"a tensor of {width * elements:,} bytes, for which its record data/{key} has {found}")


def trusted_by_user() -> Collection[Any]:
    """What a program has told torch to trust."""
    return torch.serialization.get_safe_globals()


# What it holds.


def require_contents(checkpoint: Any, largest: int) -> None:
    """Raises `ValueError` unless an object has the parts of Lightning's checkpoints, each of the right kind.

    Args:
        checkpoint: what was read.
        largest: the bytes that all tensors have together, as the archive holds them.
    """
    if not isinstance(checkpoint, dict) or not {"state_dict", "pytorch-lightning_version"} <= checkpoint.keys():
        raise ValueError("no state_dict, or not by Lightning")
    for key, value in walk(checkpoint):
        if isinstance(value, Tensor) and value.layout == torch.strided and value.numel() * value.itemsize > largest:
            raise ValueError(f"{key} is a tensor {tuple(value.shape)}, larger than the file")
    for path, (kind, words) in KINDS.items():
        for key, value in found(checkpoint, path.split(".")):
            if not kind(value):
                raise ValueError(f"{key} is {describe(value)}, and not {words}")
    for key, value in walk(checkpoint.get("loops"), "loops"):
        if isinstance(value, int | float) and not (isfinite(value) and value >= 0):
            raise ValueError(f"{key} is {value}, and not a number of 0 or more")
    for key, value in found(checkpoint, ["optimizer_states", "*", "param_groups", "*", "*"]):
        if isinstance(value, float) and isnan(value):
            raise ValueError(f"{key} is not a number")
    sealed = (checkpoint.get("normzoo") or {}).get("digest")
    if sealed is not None and sealed != digest(checkpoint):
        raise ValueError("its tensors are not those that were written into it")


def is_count(value: Any) -> bool:
    """Whether it is a number of things."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_table(value: Any) -> bool:
    """Whether it holds values by name."""
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


# Where in a checkpoint -> what stands there, if it is there; * is every element.
KINDS: dict[str, tuple[Any, str]] = {
    "pytorch-lightning_version": (
        lambda value: isinstance(value, str) and re.fullmatch(r"\d+(\.\w+)+([+-][\w.]+)?", value),
        "a version",
    ),
    "epoch": (is_count, "a number of 0 or more"),
    "global_step": (is_count, "a number of 0 or more"),
    "state_dict": (is_table, "a table of tensors by name"),
    "state_dict.*": (lambda value: isinstance(value, Tensor), "a tensor"),
    "loops": (is_table, "a table by name"),
    "loops.*": (is_table, "a table by name"),
    "callbacks": (is_table, "a table by name"),
    "callbacks.*": (lambda value: isinstance(value, dict), "a table"),
    "optimizer_states": (lambda value: isinstance(value, list), "a list"),
    "optimizer_states.*": (is_table, "a table by name"),
    "optimizer_states.*.state": (lambda value: isinstance(value, dict), "a table"),
    "optimizer_states.*.state.*": (is_table, "a table by name"),
    "optimizer_states.*.param_groups": (lambda value: isinstance(value, list), "a list"),
    "optimizer_states.*.param_groups.*": (is_table, "a table by name"),
    "optimizer_states.*.param_groups.*.params": (lambda value: isinstance(value, list), "a list"),
    "lr_schedulers": (lambda value: isinstance(value, list), "a list"),
    "lr_schedulers.*": (is_table, "a table by name"),
    "hyper_parameters": (is_table, "a table by name"),
    "hyper_parameters._class_path": (lambda value: isinstance(value, str), "the path of a class"),
    "hyper_parameters._instantiator": (lambda value: isinstance(value, str), "the path of a function"),
    "normzoo": (is_table, "a table by name"),
    "normzoo.digest": (lambda value: isinstance(value, str), "a text"),
    "normzoo.versions": (is_table, "a table by name"),
    "normzoo.metrics": (is_table, "a table by name"),
    "normzoo.config": (is_table, "a table by name"),
    "normzoo.parameters": (is_count, "a number of 0 or more"),
}


def describe(value: Any) -> str:
    """A value of any kind in a few words."""
    plain = isinstance(value, bool | int | float | str) or value is None
    return repr(value)[:40] if plain else f"a {type(value).__name__}"


def found(value: Any, path: list[str], key: str = "") -> Iterator[tuple[str, Any]]:
    """The values at a path whose parts may be `*`, each with its own path."""
    if not path:
        yield key, value
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        if path[0] in ("*", name):
            yield from found(inner, path[1:], f"{key}.{name}".lstrip("."))


def walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All that is in a value, however deep, each with its path.

    Raises:
        ValueError: there is no end: a list that holds itself, or doubles many times over.
    """
    waiting = [(key, value, 0)]
    count = 0
    while waiting:
        key, value, level = waiting.pop()
        count += 1
        if count > MOST_VALUES or level > MOST_LEVELS:
            raise ValueError("it holds values within values without end")
        yield key, value
        if isinstance(value, dict):
            waiting += [(f"{key}.{name}".lstrip(".")[-200:], inner, level + 1) for name, inner in value.items()]
        elif isinstance(value, list | tuple | set):
            waiting += [(f"{key}[{place}]", inner, level + 1) for place, inner in enumerate(value)]
