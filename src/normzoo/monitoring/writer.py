"""Writes what monitors compute: everything to TensorBoard, the scalars also to other loggers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_warn
from tensorboard.compat.proto.summary_pb2 import (
    DATA_CLASS_TENSOR,
    Summary,
    SummaryMetadata,
)
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_STRING
from tensorboard.plugins.custom_scalar import layout_pb2, metadata
from torch import Tensor

from normzoo.monitoring.event_files import file_writer
from normzoo.monitoring.lean import speed_up_checksums

PLUGIN = "normalization"
"""The plugin name of tables in event files."""


@dataclass(frozen=True)
class Chart:
    """A chart of the Custom Scalars tab.

    Args:
        title: above the chart.
        tags: regular expressions of tags, with a line for each tag that matches; or, for a band, three tags: the middle
            line, the lower and the upper bound.
        band: whether it is a line between two bounds.
    """

    title: str
    tags: tuple[str, ...]
    band: bool = False


class EventWriter:
    """Collects the values of a step, and writes them as one record.

    Args:
        trainer: its loggers receive the values, on its first process.
    """

    def __init__(self, trainer: Trainer) -> None:
        loggers = [one for one in trainer.loggers if not isinstance(one, DummyLogger)]
        self.writes = trainer.is_global_zero
        self.tensorboards = [one for one in loggers if isinstance(one, TensorBoardLogger)]
        self.others: list[Logger] = [one for one in loggers if not isinstance(one, TensorBoardLogger)]
        if self.tensorboards:
            speed_up_checksums()
        self.values: dict[int, list[Summary.Value]] = {}
        self.by_tag: dict[int, dict[str, float]] = {}
        self.described: dict[str, str] = {}

    def warn_of_loggers(self, trainer: Trainer) -> None:
        """Warns of what the loggers do not receive."""
        if not trainer.loggers and not trainer.fast_dev_run:  # type: ignore[attr-defined] # set by Lightning, undeclared
            rank_zero_warn(
                "The Trainer has no logger: monitors write nothing and only warn; the newest sample of each is in its "
                "attribute `latest`. Trainer(logger=TensorBoardLogger('lightning_logs')) shows all samples."
            )
        elif self.others and not self.tensorboards:
            names = ", ".join(type(one).__name__ for one in self.others)
            rank_zero_warn(
                f"{names} receives the overview of the monitors only. Every metric of every layer goes into "
                f"TensorBoard's event files, which `normzoo report` shows: add a TensorBoardLogger."
            )

    def add(self, step: int, *values: Summary.Value) -> None:
        """Adds values to the record of a step."""
        if self.tensorboards and self.writes:
            self.values.setdefault(step, []).extend(values)

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """Adds numbers by tag. The part of a tag before the first "/" is the group of its card."""
        self.add(step, *(Summary.Value(tag=tag, simple_value=number) for tag, number in numbers.items()))
        if self.others:
            self.by_tag.setdefault(step, {}).update(numbers)

    def metadata(self, tag: str, description: Mapping[str, Any]) -> SummaryMetadata:
        """The metadata of a record of ours: with a description if the run does not hold the same one already."""
        content = json.dumps({"version": 2, **description})
        is_new = self.described.get(tag) != content
        self.described[tag] = content
        data = SummaryMetadata.PluginData(plugin_name=PLUGIN, content=content.encode() if is_new else b"")
        return SummaryMetadata(data_class=DATA_CLASS_TENSOR, plugin_data=data)

    def table(self, step: int, tag: str, rows: Sequence[str], columns: Mapping[str, str], values: Tensor) -> None:
        """Adds a table [rows, columns] as one float32 tensor, with the names in the first record and where they change.

        Args:
            step: the step.
            tag: the name of the table.
            rows: names of the rows, such as layers.
            columns: name -> meaning and unit.
            values: (rows, columns); NaN where there is no value.
        """
        names = {"layers": list(rows), "metrics": list(columns), "units": list(columns.values())}
        kind = self.metadata(tag, names)
        dims = [TensorShapeProto.Dim(size=size) for size in values.shape]
        data = values.float().contiguous().cpu().numpy().tobytes()
        tensor = TensorProto(dtype=DT_FLOAT, tensor_shape=TensorShapeProto(dim=dims), tensor_content=data)
        self.add(step, Summary.Value(tag=tag, metadata=kind, tensor=tensor))

    def describe(self, step: int, tag: str, description: Mapping[str, Any]) -> None:
        """Adds an empty tensor with a description, once per run."""
        if tag not in self.described:
            tensor = TensorProto(dtype=DT_FLOAT, tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=0)]))
            self.add(step, Summary.Value(tag=tag, metadata=self.metadata(tag, description), tensor=tensor))

    def layout(self, step: int, categories: Mapping[str, Sequence[Chart]]) -> None:
        """Adds the Custom Scalars tab: once per run, as TensorBoard reads only the first."""
        protos = [
            layout_pb2.Category(title=title, chart=map(chart_proto, charts)) for title, charts in categories.items()
        ]
        tensor = TensorProto(dtype=DT_STRING, string_val=[layout_pb2.Layout(category=protos).SerializeToString()])
        kind = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="custom_scalars"))
        self.add(step, Summary.Value(tag=metadata.CONFIG_SUMMARY_TAG, metadata=kind, tensor=tensor))

    def flush(self) -> None:
        """Passes the records to the loggers."""
        for step, values in sorted(self.values.items()):
            summary = Summary(value=values)
            for logger in self.tensorboards:
                file_writer(logger).add_summary(summary, step)
        for step, numbers in sorted(self.by_tag.items()) if self.writes else ():
            for other in self.others:
                other.log_metrics(numbers, step)
        self.values, self.by_tag = {}, {}


def chart_proto(chart: Chart) -> layout_pb2.Chart:
    """A chart as TensorBoard's protocol buffer."""
    if chart.band:
        value, lower, upper = chart.tags
        series = layout_pb2.MarginChartContent.Series(value=value, lower=lower, upper=upper)
        return layout_pb2.Chart(title=chart.title, margin=layout_pb2.MarginChartContent(series=[series]))
    return layout_pb2.Chart(title=chart.title, multiline=layout_pb2.MultilineChartContent(tag=chart.tags))
