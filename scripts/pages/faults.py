"""docs/faults.md: networks that do not train, each with what the monitors say of it, from runs made now."""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HEAD = """\
# My network does not train: what do the monitors say?

<!-- Made by scripts/docs faults, which trains each of these networks. -->

Six networks with a fault each. Every command runs in seconds; all take `normzoo fit -c configs/digits_mlp.yaml` with
some flags, and end with the verdicts below. [docs/verdicts.md](verdicts.md) has the rules and their thresholds.
"""
DEEP = "--model.net.hidden=[100,100,100,100,100,100,100,100]"
NO_NORM = "--model.net.norm=NoNorm"
RELU = "--model.net.activation=ReLU"


@dataclass(frozen=True)
class Fault:
    """A network that does not train.

    Args:
        rule: of the verdict.
        title: what one notices.
        flags: of `normzoo fit -c configs/digits_mlp.yaml`.
        look: where the page shows it, and what.
    """

    rule: str
    title: str
    flags: tuple[str, ...]
    look: str


FAULTS = (
    Fault(
        "vanishing",
        "The loss does not move",
        (DEEP, NO_NORM),
        "In *Depth profiles* the gradient of the layer's output falls as a straight line towards the input: each sigmoid"
        " takes the same share. The layers at the left do not learn.",
    ),
    Fault(
        "exploding",
        "The loss is huge, then NaN",
        (DEEP, NO_NORM, RELU, "--model.net.init.std=0.5"),
        "In *Depth profiles* the width of the inputs rises as a straight line with depth from the first step on. The run"
        " ends within a few steps.",
    ),
    Fault(
        "non_finite",
        "The loss becomes NaN after some steps",
        (NO_NORM, RELU, "--model.optimizer.lr=3"),
        "In *Layers x steps* the last columns rise and then turn red. `normzoo replay` repeats the step and shows the "
        "range of every layer.",
    ),
    Fault(
        "exploding",
        "The rate is 30, and training seems to work",
        ("--model.optimizer.lr=30",),
        "In *Layers x steps*, metric `update_ratio`, the first column is above 1: BatchNorm makes the layers before it "
        "insensitive to their scale, so that the network recovers; the last layer has no norm behind it.",
    ),
    Fault(
        "running_lag",
        "Training is good, validation is bad",
        ("--model.net.norm.momentum=0.0001",),
        "In *A layer's page* the running mean and deviation of the channels stay at 0 and 1, far from the batches. In "
        "*Depth profiles* the distance of running and batch statistics does not fall.",
    ),
    Fault(
        "saturated",
        "Training is slow and ends early",
        (NO_NORM, "--model.net.activation=Tanh", "--model.net.init.std=1"),
        "In *A layer's page* the histogram of the inputs is wide and nearly empty between -2 and 2, where tanh has a "
        "slope.",
    ),
)


def write(root: Path) -> list[Path]:
    """Trains the networks, and writes docs/faults.md."""
    path = root / "docs" / "faults.md"
    with tempfile.TemporaryDirectory() as folder:
        sections = [section(root, fault, Path(folder) / str(i)) for i, fault in enumerate(FAULTS)]
    path.write_text("\n".join([HEAD, *sections]))
    return [path]


def section(root: Path, fault: Fault, runs: Path) -> str:
    """What one sees of a fault."""
    said, verdicts = train(root, fault, runs)
    [one] = [verdict for verdict in verdicts if verdict["rule"] == fault.rule]
    accuracy = re.search(r"test/accuracy\D+([\d.]+)", said)
    ends = (
        f"test accuracy {100 * float(accuracy[1]):.1f} %" if accuracy else "the run stops with a NaN or infinite loss"
    )
    flags = " ".join(fault.flags)
    return "\n".join([
        f"## {fault.title}",
        "",
        f"```sh\nnormzoo fit -c configs/digits_mlp.yaml {flags}\n```",
        "",
        f"Result: {ends}. The verdict:",
        "",
        f"> **{one['rule']}** {one['text']}",
        f">\n> *{one['remedy']}*",
        "",
        fault.look,
        "",
    ])  # fmt: skip


def train(root: Path, fault: Fault, runs: Path) -> tuple[str, list[dict[str, str]]]:
    """What a run prints, and its verdicts."""
    quiet = (f"--runs={runs}", "--trainer.enable_progress_bar=false")
    command = [sys.executable, "-m", "normzoo", "fit", "-c", "configs/digits_mlp.yaml", *fault.flags, *quiet]
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    [file] = runs.glob("*/*/verdicts.json")
    return said.stdout + said.stderr, json.loads(file.read_text())
