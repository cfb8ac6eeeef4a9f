"""Damaged, foreign and hostile checkpoints, made from an intact one."""

import functools
import importlib
import io
import os
import pickle
import random
import runpy
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import nn

# The file that a payload creates when it runs.
MARKER = "owned"


# Damage


def parts(whole: bytes) -> dict[str, list[range]]:
    """Part of an archive -> the positions of its bytes."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        places: dict[str, list[range]] = {
            kind: [] for kind in ("header", "name", "padding", "pickle", "tensor", "after")
        }
        for record in archive.infolist():
            start = record.header_offset
            name, extra = struct.unpack("<HH", whole[start + 26 : start + 30])
            data = start + 30 + name + extra
            end = data + record.file_size
            places["header"].append(range(start, start + 30))
            places["name"].append(range(start + 30, start + 30 + name))
            places["padding"].append(range(start + 30 + name, data))
            places["pickle" if record.filename.endswith(".pkl") else "tensor"].append(range(data, end))
            places["after"].append(range(end, end + 16))
        end = archive.start_dir + sum(46 + len(record.filename) for record in archive.infolist())
        return places | {"directory": [range(archive.start_dir, end)], "end": [range(end, len(whole))]}


PARTS = ("header", "name", "padding", "pickle", "tensor", "after", "directory", "end")


def flipped(whole: bytes, part: str, chance: random.Random) -> bytes:
    """Flips one bit in a part of an archive."""
    places = [place for place in parts(whole)[part] if len(place)]
    byte = chance.choice(chance.choice(places))
    return whole[:byte] + bytes([whole[byte] ^ (1 << chance.randrange(8))]) + whole[byte + 1 :]


def records(whole: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(contents: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive with right checksums."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in contents:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return stream.getvalue()


def with_record(whole: bytes, name: str, content: bytes | None) -> bytes:
    """Replaces, adds or, with None, removes one record."""
    contents = {record.partition("/")[2]: content for record, content in records(whole).items()}
    contents.pop(name, None)
    new = {} if content is None else {name: content}
    return packed([(f"archive/{record}", content) for record, content in (contents | new).items()])


def renamed(whole: bytes) -> bytes:
    """Exchanges the names of two records, in the directory only."""
    start = zipfile.ZipFile(io.BytesIO(whole)).start_dir
    one, other, spare = b"archive/data/0PK", b"archive/data/1PK", b"archive/data/?PK"
    directory = whole[start:].replace(one, spare).replace(other, one).replace(spare, other)
    return whole[:start] + directory


ARCHIVES: dict[str, Callable[[bytes], bytes]] = {
    "names swapped in the directory": renamed,
    "a tensor missing": lambda whole: with_record(whole, "data/0", None),
    "a tensor cut": lambda whole: with_record(whole, "data/0", b"1234"),
    "no pickle": lambda whole: with_record(whole, "data.pkl", None),
    "a newer version": lambda whole: with_record(whole, "version", b"999999"),
    "byteorder of nonsense": lambda whole: with_record(whole, "byteorder", b"\xff\xfe"),
    "an empty pickle": lambda whole: with_record(whole, "data.pkl", b""),
    "compressed": lambda whole: packed([*records(whole).items()], zipfile.ZIP_DEFLATED),
    "a zip bomb": lambda whole: packed(
        [*records(whole).items(), ("archive/data/x", bytes(10**8))], zipfile.ZIP_DEFLATED
    ),
    "something before it": lambda whole: b"#!/bin/sh\ntouch owned\n" + whole,
    "a block of zeros": lambda whole: whole[: len(whole) // 3] + bytes(512) + whole[len(whole) // 3 + 512 :],
    "its second half first": lambda whole: whole[len(whole) // 2 :] + whole[: len(whole) // 2],
    "a program": lambda whole: with_record(whole, "constants.pkl", b"\x80\x02N."),
}


# Foreign files


def saved(value: Any, **how: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **how)
    return stream.getvalue()


def tar() -> bytes:
    """A payload in torch's oldest format."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(Payload(os.system, f"touch {MARKER}"), 2)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def safetensors() -> bytes:
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    return struct.pack("<Q", len(header)) + header + bytes(8)


FOREIGN: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "one byte": lambda: b"P",
    "html": lambda: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "an empty archive": lambda: packed([]),
    "random bytes": lambda: random.Random(0).randbytes(5000),
    "a bare state_dict": lambda: saved(nn.Linear(2, 3).state_dict()),
    "a state_dict alone": lambda: saved({"state_dict": nn.Linear(2, 3).state_dict()}),
    "a list": lambda: saved([1, 2, 3]),
    "a tensor": lambda: saved(torch.ones(3)),
    "a whole module": lambda: saved(nn.Linear(2, 3)),
    "torch's old format": lambda: saved({"state_dict": {}}, _use_new_zipfile_serialization=False),
    "torch's oldest format": tar,
    "safetensors": safetensors,
    "a pickle": lambda: pickle.dumps({"state_dict": {}}),
    "a pickle that runs code": lambda: pickle.dumps(Payload(os.system, f"touch {MARKER}")),
    "numpy's format": lambda: packed([("w.npy", b"\x93NUMPY")]),
}


# Payloads


class Payload:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class State:
    """Calls a function with its state when it is unpickled."""

    def __reduce__(self) -> Any:
        return _build, (), {"a": 1}, None, None, _set


def _build() -> Any:
    open(MARKER, "w").close()


def _set(value: Any, state: Any) -> None:
    open(MARKER, "w").close()


def payloads() -> dict[str, Any]:
    """Values that run code when a careless reader loads them."""
    nested = saved(Payload(os.system, f"touch {MARKER}"))
    write = f"open({MARKER!r}, 'w').close()"
    return {
        "os.system": Payload(os.system, f"touch {MARKER}"),
        "eval": Payload(eval, write),
        "exec": Payload(exec, write),
        "Popen": Payload(subprocess.Popen, ["touch", MARKER]),
        "open": Payload(open, MARKER, "w"),
        "nested load from bytes": Payload(torch.storage._load_from_bytes, nested),
        "nested pickle": Payload(pickle.loads, pickle.dumps(Payload(os.system, f"touch {MARKER}"))),
        "partial": Payload(functools.partial, os.system, f"touch {MARKER}"),
        "import": Payload(importlib.import_module, "this"),
        "run_path": Payload(runpy.run_path, "evil.py"),
        "getattr": Payload(getattr, Payload(importlib.import_module, "os"), "system"),
        "state": State(),
        "a function": os.system,
        "a class": subprocess.Popen,
        "a class of torch": torch.Generator,
        "numpy": numpy.ones(3),
        "an array of any size": Payload(bytearray, 10**15),
        "a tensor of any size": Payload(torch.FloatTensor, 10**15),
    }


PLACES: dict[str, Callable[[dict[str, Any], Any], None]] = {
    "top": lambda checkpoint, value: checkpoint.update(extra=value),
    "hyper_parameters": lambda checkpoint, value: checkpoint["hyper_parameters"].update(extra=value),
    "optimizer": lambda checkpoint, value: checkpoint["optimizer_states"][0]["state"].update(extra=value),
    "callbacks": lambda checkpoint, value: checkpoint["callbacks"].update(extra={"x": value}),
    "loops": lambda checkpoint, value: checkpoint["loops"].update(extra={"x": value}),
    "weights": lambda checkpoint, value: checkpoint["state_dict"].update(extra=value),
    "record": lambda checkpoint, value: checkpoint["normzoo"].update(extra=value),
    "schedules": lambda checkpoint, value: checkpoint["lr_schedulers"].append(value),
}


def edited(whole: bytes, edit: Callable[[dict[str, Any]], Any]) -> bytes:
    """An edited checkpoint."""
    checkpoint = torch.load(io.BytesIO(whole), weights_only=True)
    edit(checkpoint)
    return saved(checkpoint)


def with_payload(whole: bytes, place: str, value: Any) -> bytes:
    """A checkpoint with a value in one of `PLACES`."""
    return edited(whole, lambda checkpoint: PLACES[place](checkpoint, value))


def pickles() -> dict[str, bytes]:
    """Pickles that no `torch.save` writes, which use tricks of the protocol."""
    call = b"cposix\nsystem\nX\x0b\x00\x00\x00touch owned\x85R"
    return {
        "GLOBAL": b"\x80\x02" + call + b".",
        "GLOBAL of Python 2": b"\x80\x02c__builtin__\neval\nX\x16\x00\x00\x00open('owned','w').close\x85R.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0btouch owned\x85R.",
        "INST": b"(S'touch owned'\niposix\nsystem\n.",
        "OBJ": b"(cposix\nsystem\nS'touch owned'\no.",
        "NEWOBJ_EX": b"\x80\x04cposix\nsystem\n\x8c\x0btouch owned\x85}\x92.",
        "EXT1": b"\x80\x02\x82\x01.",
        "PERSID": b"Ptouch owned\n.",
        "after STOP": b"\x80\x02}." + call + b".",
        "in a memo": b"\x80\x02" + call + b"q\x000}.",
        "protocol 255": b"\x80\xff}.",
        "SETITEM on a list": b"\x80\x02]K\x00K\x01s.",
        "BUILD of a class": b"\x80\x02ccollections\nOrderedDict\n)R}X\x0b\x00\x00\x00__reduce_ex__K\x01sb.",
        "a memo of 32 gigabytes": b"\x80\x02}r\xff\xff\xff\xff.",
        "a text of 4 gigabytes": b"\x80\x02X\xff\xff\xff\xffabc.",
        "nothing on the stack": b"\x80\x02R.",
        "no end": b"\x80\x02}",
        "a storage of a class": b"\x80\x02(X\x07\x00\x00\x00storagecposix\nsystem\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ.",
        "a list in itself": b"\x80\x02]q\x00h\x00a.",
    }


# Class of corruption -> name -> what makes it from an intact checkpoint. Each of these is refused.
REFUSED: dict[str, dict[str, Callable[[bytes], bytes]]] = {
    "truncated": {
        str(n): lambda whole, n=n: whole[: random.Random(n).randrange(len(whole))]  # type: ignore[misc]  # default argument
        for n in range(15)
    },
    **{
        f"a flipped bit of {part}": {
            str(n): lambda whole, p=part, n=n: flipped(whole, p, random.Random(f"{p}{n}"))  # type: ignore[misc]  # as above
            for n in range(8)
        }
        for part in ("pickle", "tensor", "name")
    },
    "wrongly packed": dict(ARCHIVES),
    "foreign": {name: lambda _, make=make: make() for name, make in FOREIGN.items()},  # type: ignore[misc]  # as above
    "payload": {
        name: lambda whole, n=n, v=value: with_payload(whole, [*PLACES][n % len(PLACES)], v)  # type: ignore[misc]  # as above
        for n, (name, value) in enumerate(payloads().items())
    },
    "place of a payload": {
        place: lambda whole, p=place: with_payload(whole, p, payloads()["exec"])  # type: ignore[misc]  # as above
        for place in PLACES
    },
    "pickle": {
        name: lambda whole, p=pickled: with_record(whole, "data.pkl", p)  # type: ignore[misc]  # as above
        for name, pickled in pickles().items()
    },
}


# Plain data of the wrong kind


def at(*path: Any, to: Any) -> Callable[[dict[str, Any]], Any]:
    """An edit that sets one value in a checkpoint."""

    def edit(checkpoint: dict[str, Any]) -> None:
        place: Any = checkpoint
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to

    return edit


def edits() -> dict[str, tuple[Callable[[dict[str, Any]], Any], str]]:
    """Edits that leave plain data, and a part of the message that refuses the checkpoint when a run is resumed."""
    nan = float("nan")
    batches = ("loops", "fit_loop", "epoch_loop.batch_progress")
    return {
        "a list of weights": (at("state_dict", to=[1, 2]), "its state_dict is a list, not a dict"),
        "a string for weights": (at("state_dict", "net.head.bias", to="x"), "another architecture.*net.head.bias"),
        "weights of another shape": (
            at("state_dict", "net.head.bias", to=torch.ones(1)),
            "another architecture.*size mismatch for net.head.bias",
        ),
        "an absurd tensor": (
            at("state_dict", "net.head.bias", to=torch.zeros(1).expand(10**9, 1000)),
            "cannot be restored.*memory",
        ),
        "NaN for an epoch": (at("epoch", to=nan), "its epoch is a float, not a int"),
        "a string for a step": (at("global_step", to="7"), "its global_step is a str"),
        "NaN for a version": (at("pytorch-lightning_version", to=nan), "version is a float"),
        "a list of loops": (at("loops", to=[1]), "loops is a list"),
        "no loop for fitting": (at("loops", to={}), "lacks the progress of its training loop"),
        "a number for progress": (at(*batches, "current", to=5), "lacks the progress of its training loop"),
        "a string for progress": (at(*batches, "total", "completed", to="x"), "lacks the progress"),
        "a list of callbacks": (at("callbacks", to=[1]), "callbacks is a list"),
        "a number for optimizers": (at("optimizer_states", to=3), "optimizer_states is a int"),
        "a string for an optimizer": (at("optimizer_states", 0, to="x"), "cannot be restored"),
        "groups of numbers": (at("optimizer_states", 0, "param_groups", to=[1]), "cannot be restored"),
        "fewer groups": (at("optimizer_states", 0, "param_groups", to=[]), "cannot be restored"),
        "a list of hyperparameters": (at("hyper_parameters", to=[1]), "hyper_parameters is a list"),
        "a string for the record": (at("normzoo", to="x"), "normzoo is a str"),
        "a setting of another kind": (at("hyper_parameters", "net", "init_args", "hidden", to="x"), "hidden"),
    }


def endless() -> dict[str, Any]:
    """Plain data without an end, or with more elements than there are atoms."""
    own: list[Any] = []
    own.append(own)
    doubled: list[Any] = []
    for _ in range(64):
        doubled = [doubled, doubled]
    return {"in itself": own, "doubled": doubled}
