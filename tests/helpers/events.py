"""Event files as monitors write them, made by hand: any table, any step, any bytes at the end."""

import gzip
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.util.tensor_util import make_tensor_proto


def record(event: Event) -> bytes:
    """An event as it lies in a file."""

    def masked(data: bytes) -> bytes:
        crc = google_crc32c.value(data)
        return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    return length + masked(length) + content + masked(content)


def own(tag: str, array: Any, content: Any = None) -> Summary.Value:
    """A value of the plugin; content is its JSON."""
    data = b"" if content is None else json.dumps(content).encode()
    plugin = SummaryMetadata.PluginData(plugin_name="normalization", content=data)
    metadata = SummaryMetadata(data_class=DATA_CLASS_TENSOR, plugin_data=plugin)
    return Summary.Value(tag=tag, metadata=metadata, tensor=make_tensor_proto(array))


class Events:
    """Writes an event file of a run.

    Args:
        folder: of the run.
        number: of the file: a resumed run has several.
    """

    def __init__(self, folder: Path, number: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.1700000000.host.1.{number}"
        self.path.touch()
        if not self.path.stat().st_size:
            self.write(Event(file_version="brain.Event:2"))

    def write(self, event: Event) -> None:
        with self.path.open("ab") as file:
            file.write(record(event))

    def values(self, step: int, *values: Summary.Value) -> None:
        self.write(Event(step=step, wall_time=float(step), summary=Summary(value=values)))

    def table(
        self,
        step: int,
        tag: str,
        values: Any,
        layers: Sequence[str] = (),
        metrics: Sequence[str] = (),
        version: int = 2,
    ) -> None:
        """A table; names stand beside it if they are given."""
        names = {"version": version, "layers": [*layers], "metrics": [*metrics], "units": ["unit"] * len(metrics)}
        self.values(step, own(tag, np.asarray(values, np.float32), names if layers else None))

    def scalar(self, step: int, tag: str, value: float) -> None:
        self.values(step, Summary.Value(tag=tag, simple_value=value))

    def start(self, step: int) -> None:
        """What a resumed run writes first."""
        self.write(Event(step=step, session_log=SessionLog(status=SessionLog.START)))

    def about(self, **content: Any) -> None:
        self.values(0, own("normalization/run", np.zeros(0, np.float32), {"version": 2, **content}))

    def verdict(self, step: int, **content: Any) -> None:
        self.values(step, own("normalization/verdicts", json.dumps([{"text": "a sentence", **content}])))


def resnet_run(folder: Path, samples: int = 200, details: int = 200, seed: int = 0, depth: int = 20) -> Path:
    """A run as large as one of a ResNet with all monitors: tables that change as real ones do, many of them sparse."""
    random = np.random.default_rng(seed)
    events = Events(folder)
    events.about(norm="BatchNorm", seed=seed, steps=10 * samples, network=[])
    layers, norms, activations = ([f"net.blocks.{i}.{kind}" for i in range(count)] for kind, count in
                                  (("conv", depth + 2), ("norm", depth + 1), ("activation", depth - 1)))  # fmt: skip
    units = [*activations, *(f"{name}/0" for name in activations)]
    sizes = {"RunningStatistics": (norms, 9, 1.0), "CovariateShift": ([*layers, *norms], 15, 0.6),
             "GradientFlow": (layers, 6, 0.9), "ActivationPercentiles": (units, 10, 0.5),
             "InternalCovariateShift": (layers, 3, 1.0), "ActivationPercentiles/histogram": (activations, 66, 1.0),
             "LossLandscape/curve": (["0.05", "0.1", "0.2", "0.4"], 2, 1.0)}  # fmt: skip
    known, state = {}, {}
    for name, (rows, count, share) in sizes.items():
        known[name] = random.random((len(rows), count)) < share
        state[name] = random.normal(size=(len(rows), count))
    for step in range(samples):
        values = []
        for name, (rows, count, _) in sizes.items():
            state[name] = state[name] + 0.05 * random.normal(size=state[name].shape)
            table = np.where(
                known[name], np.exp(state[name]) * (1 + 0.1 * random.normal(size=state[name].shape)), np.nan
            )
            if "histogram" in name:
                table = np.round(100 * table) * (np.abs(np.arange(66) - 33) < 20)
            names = {"layers": rows, "metrics": [f"m{i}" for i in range(count)]} if step == 0 else None
            values.append(own(f"normalization/{name}", table.astype(np.float32), names))
        for i, layer in enumerate(norms if step % (samples // details) == 0 else ()):
            table = np.exp(0.3 * random.normal(size=(16 << i // 7, 7)))
            names = {"layers": [*map(str, range(16 << i // 7))], "metrics": list("abcdefg")} if step == 0 else None
            values.append(own(f"channels/{layer}", table.astype(np.float32), names))
        events.values(10 * step, *values)
    return folder


def unpacked(content: bytes) -> Any:
    """A packed run, as the script of a report reads it."""
    content = gzip.decompress(content)
    end = 4 + struct.unpack("<I", content[:4])[0]

    def read(found: dict[str, Any]) -> Any:
        if not isinstance(found.get("drop"), int):
            return found
        steps, *inner = found["shape"]
        count = int(np.prod(found["shape"]))
        planes = np.frombuffer(content[end + found["at"] :][: 3 * count], np.uint8).reshape(3, *inner, steps)
        unsigned = (planes.astype(np.int32) << np.array([0, 8, 16]).reshape(3, *[1] * len(found["shape"]))).sum(0)
        bits = np.cumsum((unsigned >> 1) ^ -(unsigned & 1), axis=-1, dtype=np.int32) << found["drop"]
        values = np.moveaxis(np.ascontiguousarray(bits).view(np.float32), -1, 0)
        return np.where(np.isnan(values), None, values).tolist()

    return json.loads(content[4:end], object_hook=read)


def small_run(
    folder: Path, steps: int = 3, norm: str = "BatchNorm", layers: Sequence[str] = ("net.0", "net.1")
) -> Path:
    """A run with one table, of known values: 100 step + 10 row + column."""
    events = Events(folder)
    events.about(norm=norm, seed=0, steps=steps, network=[])
    for step in range(steps):
        values = [[100.0 * step + 10 * row + column for column in range(2)] for row in range(len(layers))]
        first = {"layers": layers, "metrics": ["flow_norm", "grad_norm"]} if step == 0 else {}
        events.table(step, "normalization/GradientFlow", values, **first)
    return folder
