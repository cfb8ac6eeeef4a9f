"""What is wrong with this training?"""

import json
import math
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from torch import nn

from normzoo.callbacks.activation_percentiles import flat_bounds
from normzoo.callbacks.finite_loss import FiniteLoss
from normzoo.callbacks.running_statistics import keeps_statistics
from normzoo.errors import InputError
from normzoo.monitoring.description import finite, steps_of
from normzoo.monitoring.event_files import event_loggers, file_writer
from normzoo.monitoring.layers import is_norm, is_weighted, named_layers, own_parameters
from normzoo.monitoring.monitor import Monitor
from normzoo.monitoring.verdicts import Evidence, Sample, Thresholds, Verdict, judge
from normzoo.monitoring.writer import PLUGIN
from normzoo.norms import NoNorm
from normzoo.runs.atomic import written_whole

KEPT = 8
"""Samples of each monitor that the rules look back on."""
SHARES = ("dead", "saturated", "vanishing")
FILE = "verdicts.json"


class Verdicts(Callback):
    """Says in a sentence what is wrong with a training, and what to do about it.

    After each sample of the Trainer's monitors, and after each validation and test, it applies the rules of
    `normzoo.monitoring.verdicts`: gradients that vanish or explode, a learning rate that is too large, values that are
    not finite, dead and saturated units, running statistics that lag, evaluation data of another distribution, layers
    that do not learn. A rule gives one verdict per run, and none on what another verdict explains.

    A verdict is printed when it first holds, and all of them when the run ends. TensorBoard receives them in the Text
    tab, `verdicts`, and as the record `normalization/verdicts`; the file `verdicts.json` holds the list, empty for a
    healthy run. A resumed run continues with those from before. Any monitor adds this callback to its Trainer.

    >>> from normzoo.callbacks import GradientFlow
    >>> trainer = Trainer(callbacks=[GradientFlow(every=10), Verdicts(vanishing=1e-4)], logger=False)

    Args:
        folder: where `verdicts.json` is written; None for the folder of the first logger that has one, if any.
        summary: whether to print all verdicts at the end of the training.
        update: the size of an update, as a share of the weights, above which the learning rate is too large.
        exploding: the gradient of a layer's output, as a share of the last layer's, above which it explodes.
        growth: the standard deviation of a layer's input, as a share of the first layer's or of 1 if that is less,
            above which activations explode.
        dead: the share of dead units above which a layer is dead, in (0, 1).
        saturated: the share of saturated inputs above which a nonlinearity is saturated, in (0, 1).
        vanishing: the gradient of a layer's output, as a share of the last layer's, below which it vanishes, in (0, 1).
        running_lag: the divergence, in nats per channel, above which running statistics do not describe the batches.
        shift: the distance, in standard deviations, above which evaluation data differ from training data.
        not_learning: the turn, as a share of the weights, below which a layer does not learn.

    Attributes:
        found: the verdicts, in the order in which they first held.

    Raises:
        InputError: a threshold out of range.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        summary: bool = True,
        update: float = Thresholds.update,
        exploding: float = Thresholds.exploding,
        growth: float = Thresholds.growth,
        dead: float = Thresholds.dead,
        saturated: float = Thresholds.saturated,
        vanishing: float = Thresholds.vanishing,
        running_lag: float = Thresholds.running_lag,
        shift: float = Thresholds.shift,
        not_learning: float = Thresholds.not_learning,
    ) -> None:
        given = {
            "update": update,
            "exploding": exploding,
            "growth": growth,
            "dead": dead,
            "saturated": saturated,
            "vanishing": vanishing,
            "running_lag": running_lag,
            "shift": shift,
            "not_learning": not_learning,
        }
        for name, value in given.items():
            most = 1.0 if name in SHARES else math.inf
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < most:
                rule = "in (0, 1)" if name in SHARES else "a number above 0"
                raise InputError(
                    f"Verdicts({name}={value!r}): the threshold is {rule}; the default is {getattr(Thresholds, name):g}"
                )
        self.folder = folder
        self.prints_summary = summary
        self.thresholds = Thresholds(**given)
        self.is_fitting = False
        self.steps: float | None = None
        self.resumed: dict[str, Any] = {}
        self.reset()

    def reset(self) -> None:
        """Forgets the samples and verdicts of an earlier run."""
        self.found: list[Verdict] = []
        self.samples: dict[str, deque[Sample]] = {}
        self.starts: dict[str, list[int]] = {}
        self.owned: dict[str, list[nn.Parameter]] = {}
        self.facts: dict[str, Any] = {}

    # The run.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.resumed = {}  # of a checkpoint that was tested
        if stage == "fit" and trainer.global_step == 0:
            self.reset()
        if self.folder is not None and trainer.is_global_zero:
            Path(self.folder).mkdir(parents=True, exist_ok=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.is_fitting = True
        self.find_layers(pl_module)
        self.steps = finite(steps_of(trainer))
        resumed, self.resumed = self.resumed, {}
        if resumed:
            self.found = [Verdict(**one) for one in resumed["found"]]
            self.samples = {
                table: deque((Sample(*one) for one in samples), KEPT) for table, samples in resumed["samples"].items()
            }
            self.starts = {table: list(steps) for table, steps in resumed["starts"].items()}
        self.write(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.end(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.is_fitting:
            self.end(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.judge(trainer, trainer.global_step)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.samples:
            self.judge(trainer, trainer.global_step)

    def end(self, trainer: Trainer) -> None:
        """Judges once more, as a step that was not finite has ended the training; writes the file and the summary."""
        self.is_fitting = False
        self.judge(trainer, trainer.global_step)
        self.write(trainer)
        if self.prints_summary:
            say(trainer, self.summary())

    # The verdicts.

    def find_layers(self, module: LightningModule) -> None:
        """Reads what the rules need to know of the layers."""
        layers = dict(named_layers(module))
        flat = {name: flat_bounds(layer) for name, layer in layers.items()}
        owned = {name: own_parameters(layer) for name, layer in layers.items()}
        self.owned = {name: many for name, many in owned.items() if many}
        self.facts = {
            "two_sided": {n for n, bounds in flat.items() if bounds and bounds[0] < 0 and math.isfinite(sum(bounds))},
            "momentum": {n: getattr(one, "momentum", None) for n, one in layers.items() if keeps_statistics(one)},
            "outputs": {name for name, bounds in flat.items() if bounds} - inner(layers),
            "has_norms": any(is_norm(layer) and not isinstance(layer, NoNorm) for layer in layers.values()),
        }

    def judge(self, trainer: Trainer, number: int) -> None:
        """Applies the rules to what the monitors have written; the sampler calls it after each sample.

        Args:
            trainer: the trainer.
            number: the step.
        """
        self.read_monitors(trainer)
        new = judge(self.evidence(trainer), self.thresholds, [one.rule for one in self.found])
        if not new:
            return
        self.found += new
        for verdict in new:
            say(trainer, f"{verdict.rule}: {verdict.text}\n  {verdict.remedy}")
        if trainer.is_global_zero:
            for logger in event_loggers(trainer):
                file_writer(logger).add_summary(Summary(value=records(new)), number)
        self.write(trainer)

    def read_monitors(self, trainer: Trainer) -> None:
        """Takes over what the monitors have written since the last time."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined] # set by Lightning, undeclared
        for monitor in callbacks:
            if isinstance(monitor, Monitor):
                while monitor.written:
                    sample = Sample(*monitor.written.popleft())
                    self.samples.setdefault(monitor.label, deque(maxlen=KEPT)).append(sample)
                    starts = self.starts.setdefault(monitor.label, [])
                    starts[:] = dict.fromkeys([*starts, sample.step][:2])

    def evidence(self, trainer: Trainer) -> Evidence:
        """What the rules judge: the samples, and facts about the network and the run."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined] # set by Lightning, undeclared
        bad_steps = [one.found for one in callbacks if isinstance(one, FiniteLoss) and one.found is not None]
        return Evidence(
            self.samples,
            self.starts,
            frozen={name for name, many in self.owned.items() if not any(p.requires_grad for p in many)},
            rate=float(trainer.optimizers[0].param_groups[0]["lr"]) if trainer.optimizers else None,
            steps=self.steps,
            scales_loss=getattr(trainer.precision_plugin, "scaler", None) is not None,
            bad_step=bad_steps[0] if bad_steps else None,
            **self.facts,
        )

    def summary(self) -> str:
        """All verdicts of the run as text; one line for a healthy run."""
        steps = [sample.step for samples in self.samples.values() for sample in samples]
        if not self.found:
            return f"verdicts: no fault found up to step {max(steps)}" if steps else "verdicts: there was no sample"
        lines = [f"verdicts: {len(self.found)} fault{'s' if len(self.found) > 1 else ''} found"]
        return "\n".join([*lines, *(f"  {one.rule}: {one.text}\n    {one.remedy}" for one in self.found)])

    # The file and the state.

    def write(self, trainer: Trainer) -> None:
        """Writes `verdicts.json`, completely or not at all."""
        folder = self.folder or log_folder(trainer)
        if folder is None or not trainer.is_global_zero or not Path(folder).is_dir():  # it may have been deleted
            return
        try:
            with written_whole(Path(folder) / FILE) as file:
                file.write(f"{as_json(self.found, indent=2)}\n".encode())
        except OSError as error:
            rank_zero_warn(f"{Path(folder) / FILE} could not be written ({error.strerror or error}).")

    def state_dict(self) -> dict[str, Any]:
        samples = {table: [tuple(one) for one in samples] for table, samples in self.samples.items()}
        starts = {table: list(steps) for table, steps in self.starts.items()}
        return {"found": [asdict(one) for one in self.found], "samples": samples, "starts": starts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps what `state_dict` returned until training starts: a test reads a checkpoint too."""
        self.resumed = state_dict


def inner(layers: Mapping[str, nn.Module]) -> set[str]:
    """The modules before the last layer with weights; those behind it shape the output, as a sigmoid does."""
    names = list(layers)
    last = max((i for i, layer in enumerate(layers.values()) if is_weighted(layer)), default=len(names))
    return set(names[:last])


def as_json(verdicts: list[Verdict], indent: int | None = None) -> str:
    """The list for a file; infinity is 1e999, which any reader of JSON takes for it."""
    return json.dumps([asdict(one) for one in verdicts], indent=indent).replace(": Infinity", ": 1e999")


def records(verdicts: list[Verdict]) -> list[Summary.Value]:
    """Verdicts as records of an event file: the list for tools, and a text for TensorBoard."""
    text = "\n\n".join(f"**{one.rule}** {one.text}\n\n*{one.remedy}*" for one in verdicts)
    return [text_record(f"{PLUGIN}/verdicts", PLUGIN, as_json(verdicts)), text_record("verdicts", "text", text)]


def text_record(tag: str, plugin: str, text: str) -> Summary.Value:
    """A record of a plugin that holds a text."""
    data = SummaryMetadata.PluginData(plugin_name=plugin)
    kind = SummaryMetadata(data_class=DATA_CLASS_TENSOR, plugin_data=data)
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    return Summary.Value(
        tag=tag, metadata=kind, tensor=TensorProto(dtype=DT_STRING, tensor_shape=shape, string_val=[text.encode()])
    )


def log_folder(trainer: Trainer) -> Path | None:
    """The folder of the first logger that has one; `trainer.log_dir` would wait for other ranks."""
    loggers = [one for one in trainer.loggers if isinstance(one, TensorBoardLogger | CSVLogger)]
    return Path(loggers[0].log_dir) if loggers else None


def say(trainer: Trainer, text: str) -> None:
    """Prints on the first rank, above a progress bar that is drawn."""
    if trainer.is_global_zero:
        Tqdm.write(text, file=sys.stdout)


Monitor.companions.append(Verdicts)
