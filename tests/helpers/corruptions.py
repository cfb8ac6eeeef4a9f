"""Checkpoints that are none any more: cut, flipped, put together wrongly, of another kind, with a payload."""

import io
import os
import pickle
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from normzoo.runs.seal import seal

# What a payload writes when it runs.
MARKER = "owned"


# Archives


def parts(whole: bytes) -> dict[str, list[range]]:
    """The places in an archive, by kind."""
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


def flipped(whole: bytes, kind: str, chance: random.Random) -> bytes:
    """One bit another, in a place of a kind."""
    places = [place for place in parts(whole)[kind] if len(place)]
    byte = chance.choice(chance.choice(places))
    return whole[:byte] + bytes([whole[byte] ^ (1 << chance.randrange(8))]) + whole[byte + 1 :]


def records(whole: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(contents: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    """An archive with good checksums."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in contents:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
        archive.comment = comment
    return stream.getvalue()


def with_records(whole: bytes, **changed: bytes | None) -> bytes:
    """With other records, by name with `__` for `/`; None takes one away."""
    new = {name.replace("__", "/"): content for name, content in changed.items()}
    contents = {name.partition("/")[2]: content for name, content in records(whole).items()}
    contents |= {name: content for name, content in new.items() if content is not None}
    return packed([(f"archive/{n}", c) for n, c in contents.items() if not (n in new and new[n] is None)])


def swapped(whole: bytes) -> bytes:
    """Two tensors of the same size in each other's place, with good checksums."""
    contents = records(whole)
    tensors = {name: content for name, content in contents.items() if "/data/" in name and len(content) > 8}
    for one in tensors:
        for other in tensors:
            if len(tensors[one]) == len(tensors[other]) and tensors[one] != tensors[other]:
                return packed([*(contents | {one: tensors[other], other: tensors[one]}).items()])
    raise AssertionError("no two tensors of the same size")


def renamed(whole: bytes) -> bytes:
    """The names of two records exchanged, in the directory alone."""
    start = zipfile.ZipFile(io.BytesIO(whole)).start_dir
    one, other, spare = b"archive/data/0PK", b"archive/data/1PK", b"archive/data/?PK"
    directory = whole[start:].replace(one, spare).replace(other, one).replace(spare, other)
    return whole[:start] + directory


def twice(whole: bytes) -> bytes:
    """The first tensor twice, the second time with other numbers."""
    contents = [*records(whole).items()]
    name, content = next(item for item in contents if item[0].endswith("/data/0"))
    with __import__("warnings").catch_warnings():
        __import__("warnings").simplefilter("ignore")  # zipfile's, of the name
        return packed([*contents, (name, bytes(len(content)))])


ARCHIVES: dict[str, Callable[[bytes], bytes]] = {
    "swapped tensors": swapped,
    "names swapped in the directory": renamed,
    "a tensor twice": twice,
    "a tensor missing": lambda whole: with_records(whole, data__0=None),
    "a tensor cut": lambda whole: with_records(whole, data__0=b"1234"),
    "a tensor longer": lambda whole: with_records(whole, data__0=bytes(10**6)),
    "no pickle": lambda whole: with_records(whole, **{"data.pkl": None}),
    "no version": lambda whole: with_records(whole, version=b"999999"),
    "another byteorder": lambda whole: with_records(whole, byteorder=b"big"),
    "byteorder of nonsense": lambda whole: with_records(whole, byteorder=b"\xff\xfe"),
    "an empty pickle": lambda whole: with_records(whole, **{"data.pkl": b""}),
    "a pickle cut": lambda whole: with_records(
        whole, **{"data.pkl": next(v for k, v in records(whole).items() if k.endswith("data.pkl"))[:999]}
    ),
    "compressed": lambda whole: packed([*records(whole).items()], zipfile.ZIP_DEFLATED),
    "a zip bomb": lambda whole: packed(
        [*records(whole).items(), ("archive/data/x", bytes(10**8))], zipfile.ZIP_DEFLATED
    ),
    "something before it": lambda whole: b"#!/bin/sh\ntouch owned\n" + whole,
    "something after it": lambda whole: whole + bytes(100),
    "two archives": lambda whole: whole + packed([*records(whole).items()]),
    "a comment": lambda whole: packed([*records(whole).items()], comment=b"hello"),
    "two folders": lambda whole: packed([*records(whole).items(), ("other/data.pkl", b"")]),
    "a block of zeros": lambda whole: whole[: len(whole) // 3] + bytes(512) + whole[len(whole) // 3 + 512 :],
    "its second half first": lambda whole: whole[len(whole) // 2 :] + whole[: len(whole) // 2],
    "a program": lambda whole: with_records(whole, **{"constants.pkl": b"\x80\x02N."}),
}


# Other kinds of files


def saved(value: Any, **how: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **how)
    return stream.getvalue()


def tar() -> bytes:
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


KINDS: dict[str, Callable[[], bytes]] = {
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
    """Calls something when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class State:
    """Calls something with its state when it is unpickled."""

    def __reduce__(self) -> Any:
        return _build, (), {"a": 1}, None, None, _set


def _build() -> Any:
    open(MARKER, "w").close()


def _set(value: Any, state: Any) -> None:
    open(MARKER, "w").close()


def runs() -> dict[str, Any]:
    """Values whose reading runs code, or would by a careless reader."""
    import functools
    import importlib
    import runpy
    import subprocess

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
        "a generator of its own": torch.Generator,
        "numpy": __import__("numpy").ones(3),
        "an array of any size": Payload(bytearray, 10**12),
        "a tensor of any size": Payload(torch.FloatTensor, 10**12),
    }


PLACES: dict[str, Callable[[dict[str, Any], Any], None]] = {
    "top": lambda checkpoint, value: checkpoint.update(extra=value),
    "hyper_parameters": lambda checkpoint, value: checkpoint["hyper_parameters"].update(extra=value),
    "optimizer": lambda checkpoint, value: checkpoint["optimizer_states"][0]["state"].update(extra=value),
    "group": lambda checkpoint, value: checkpoint["optimizer_states"][0]["param_groups"][0].update(extra=value),
    "callbacks": lambda checkpoint, value: checkpoint["callbacks"].update(extra={"x": value}),
    "loops": lambda checkpoint, value: checkpoint["loops"].update(extra={"x": value}),
    "weights": lambda checkpoint, value: checkpoint["state_dict"].update(extra=value),
    "record": lambda checkpoint, value: checkpoint["normzoo"].update(extra=value),
    "schedules": lambda checkpoint, value: checkpoint["lr_schedulers"].append(value),
}


def with_payload(whole: bytes, place: str, value: Any) -> bytes:
    """A checkpoint with something in a place of it."""
    checkpoint = torch.load(io.BytesIO(whole), weights_only=True)
    PLACES[place](checkpoint, value)
    return saved(checkpoint)


def pickles() -> dict[str, bytes]:
    """Pickles that no `torch.save` writes, for tricks of the protocol."""
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
        "SETITEM on a tensor": b"\x80\x02ctorch\nTensor\nK\x00K\x01s.",
        "APPEND to a class": b"\x80\x02ccollections\nOrderedDict\nK\x01a.",
        "BUILD of a class": b"\x80\x02ccollections\nOrderedDict\n)R}X\x0b\x00\x00\x00__reduce_ex__K\x01sb.",
        "a memo of 32 gigabytes": b"\x80\x02}r\xff\xff\xff\xff.",
        "a text of 4 gigabytes": b"\x80\x02X\xff\xff\xff\xffabc.",
        "nothing on the stack": b"\x80\x02R.",
        "no end": b"\x80\x02}",
        "a storage that is a text": b"\x80\x02X\x01\x00\x00\x000Q.",
        "a storage of a class": b"\x80\x02(X\x07\x00\x00\x00storagecposix\nsystem\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ.",
        "a list in itself": b"\x80\x02]q\x00h\x00a.",
    }


def without_end() -> dict[str, Any]:
    """Plain data that has no end, or more of it than there are atoms."""
    own: list[Any] = []
    own.append(own)
    doubled: list[Any] = []
    for _ in range(64):
        doubled = [doubled, doubled]
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    return {"in itself": own, "doubled": doubled, "deep": deep}


def edits() -> dict[str, tuple[Callable[[dict[str, Any]], Any], str]]:
    """What is read without harm, and is no checkpoint all the same -> what the message says of it."""
    nan = float("nan")

    def at(*path: Any, to: Any) -> Callable[[dict[str, Any]], Any]:
        def edit(checkpoint: dict[str, Any]) -> None:
            place: Any = checkpoint
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = to

        return edit

    progress = ("loops", "fit_loop", "epoch_progress", "current", "ready")
    huge = torch.zeros(1).expand(10**9, 1000)
    return {
        "a text for weights": (
            at("state_dict", "net.head.bias", to="x"),
            "state_dict.net.head.bias is 'x', and not a ten",
        ),
        "no table of weights": (at("state_dict", to=[1, 2]), "state_dict is a list"),
        "weights by number": (at("state_dict", to={1: torch.ones(1)}), "state_dict is a dict, and not a table"),
        "an absurd tensor": (at("state_dict", "net.head.bias", to=huge), r"\(1000000000, 1000\), larger than the file"),
        "NaN for an epoch": (at("epoch", to=nan), "epoch is nan"),
        "half an epoch": (at("epoch", to=0.5), "epoch is 0.5"),
        "a text for a step": (at("global_step", to="7"), "global_step is '7'"),
        "steps before the first": (at("global_step", to=-1), "global_step is -1"),
        "NaN for a version": (at("pytorch-lightning_version", to=nan), "version is nan"),
        "nonsense for a version": (at("pytorch-lightning_version", to="x.y"), "version is 'x.y'"),
        "NaN in a loop": (at(*progress, to=nan), "loops.fit_loop.epoch_progress.current.ready is nan"),
        "less than nothing in a loop": (at(*progress, to=-3), "current.ready is -3"),
        "a list of loops": (at("loops", to=[1]), "loops is a list"),
        "a text for a loop": (at("loops", "fit_loop", to="x"), "loops.fit_loop is 'x'"),
        "no loop for fitting": (at("loops", to={}), "lacks loops.fit_loop.epoch_progress"),
        "a number for a place": (
            at("loops", "fit_loop", "epoch_loop.batch_progress", "current", to=5),
            r"lacks loops.fit_loop.epoch_loop.batch_progress.current.ready",
        ),
        "a text for a place": (
            at("loops", "fit_loop", "epoch_loop.batch_progress", "total", "completed", to="x"),
            r"lacks loops.fit_loop.epoch_loop.batch_progress.total.completed",
        ),
        "a list of callbacks": (at("callbacks", to=[1]), "callbacks is a list"),
        "a number for a callback": (at("callbacks", "x", to=3), "callbacks.x is 3"),
        "a number for optimizers": (at("optimizer_states", to=3), "optimizer_states is 3"),
        "a text for an optimizer": (at("optimizer_states", 0, to="x"), "optimizer_states.0 is 'x'"),
        "groups of numbers": (at("optimizer_states", 0, "param_groups", to=[1]), "param_groups.0 is 1"),
        "NaN for a rate": (
            at("optimizer_states", 0, "param_groups", 1, "lr", to=nan),
            "param_groups.1.lr is not a num",
        ),
        "a list for a schedule": (at("lr_schedulers", to=[[1]]), "lr_schedulers.0 is a list"),
        "a list of hyperparameters": (at("hyper_parameters", to=[1]), "hyper_parameters is a list"),
        "a number for a class": (at("hyper_parameters", "_class_path", to=3), "_class_path is 3"),
        "a text for the record": (at("normzoo", to="x"), "normzoo is 'x'"),
        "a text for versions": (at("normzoo", "versions", to="x"), "normzoo.versions is 'x'"),
        "another weight": (at("state_dict", "net.head.bias", to=torch.zeros(10)), "not those that were written"),
        "a setting of another kind": (at("hyper_parameters", "net", "init_args", "hidden", to="x"), "hidden"),
        "fewer groups": (at("optimizer_states", 0, "param_groups", to=[]), "cannot be taken up"),
        "another loop": (at("loops", "fit_loop", to={"x": {}}), "lacks loops.fit_loop.epoch_progress"),
    }


# What is sealed again after an edit, as its writer could have.
def edited(whole: bytes, edit: Callable[[dict[str, Any]], Any], sealed: bool) -> bytes:
    checkpoint = torch.load(io.BytesIO(whole), weights_only=True)
    edit(checkpoint)
    if sealed and isinstance(checkpoint.get("normzoo"), dict):
        seal(checkpoint)
    return saved(checkpoint)
