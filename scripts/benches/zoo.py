"""`scripts/bench zoo`: all layers of the zoo compared on real images, for docs/benchmark.md.

Two grids of `normzoo compare`: the learning rate of each layer is tuned on a grid with one seed, by the accuracy on the
validation images; then its best rate is trained with two more. Beside them, one training step of each layer in the
same network: its time, in turns with TorchBatchNorm, and the bytes that it saves for the backward pass.

Killed and started again, it continues. Fashion-MNIST's files must be where configs/fashion_resnet.yaml finds them. Two
idle cores take about 40 minutes. It judges nothing: the exit status is 0.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from normzoo.cli.runtime import keep_pages, share_cores

share_cores()  # before torch is imported

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from machine import describe  # beside this file

from normzoo import page
from normzoo.errors import InputError
from normzoo.models import MLP, Normal, ResNet
from normzoo.norms import layers
from normzoo.runs.atomic import written_whole

DENSE = [name for name, layer in layers().items() if layer.facts.dense]
COMMON = ["seed=0", "--best_seeds=1..2", "--monitors=false", "--trainer.accelerator=cpu"]
GRIDS = {
    "digits_mlp": [
        *("-c", "configs/digits_mlp.yaml", f"norm={','.join(DENSE)}", "model.optimizer.lr=0.01,0.03,0.1,0.3,1.0,3.0"),
        *COMMON,
    ],
    "fashion_resnet": [
        *("-c", "configs/fashion_resnet.yaml", f"norm={','.join(layers())}", "model.optimizer.lr=0.01,0.03,0.1,0.3"),
        *("--model.net.width=8", "--data.batch_size=64", "--data.val_size=2000"),
        *("--trainer.max_epochs=1", "--trainer.limit_train_batches=300"),
        *COMMON,
    ],
}
BASELINE = "TorchBatchNorm"


def network(grid: str, name: str) -> tuple[nn.Module, Tensor]:
    """The network of a grid with a layer, and a batch of its size."""
    norm = layers()[name]
    if grid == "digits_mlp":
        sizes = {"hidden": [100, 100, 100], "activation": nn.Sigmoid, "init": Normal(std=0.1)}
        return MLP((1, 8, 8), 10, norm=norm, **sizes), torch.randn(60, 1, 8, 8)
    return ResNet((1, 28, 28), 10, depth=8, width=8, norm=norm), torch.randn(64, 1, 28, 28)


def main() -> None:
    """Trains the grids, measures the steps, and writes the file."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench zoo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default="docs/benchmark.json", metavar="FILE", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default="lightning_logs/benchmark", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=11, help="of the timed steps (default: %(default)s)")
    given = parser.parse_args()
    report: dict[str, Any] = {"machine": describe(), "grids": {}}
    for name, command in GRIDS.items():
        arguments = [*command, f"--out={given.out / name}"]
        subprocess.run([sys.executable, "-m", "normzoo", "compare", *arguments], check=False)
        measured = costs(name, given.rounds)
        report["grids"][name] = {
            "command": command,
            "arms": [plain(arm) for arm in page.compare(given.out / name)["arms"]],
            "costs": measured,
            "refused": [layer for layer in layers() if layer not in measured],
        }
    with written_whole(given.json) as file:
        file.write(f"{json.dumps(report)}\n".encode())
    print(given.json)


def plain(arm: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a setting."""
    kept = ("norm", "settings", "seeds", "values", "mean", "low", "high", "best", "best_difference", "planned")
    return {key: arm[key] for key in kept} | {"failures": len(arm["failures"])}


def costs(grid: str, rounds: int) -> dict[str, dict[str, float]]:
    """Of each layer that the network takes: milliseconds per training step, and megabytes saved for backward."""
    torch.set_num_threads(1)
    keep_pages()
    steps: dict[str, Callable[[], float]] = {}
    saved: dict[str, float] = {}
    for name in layers():
        try:
            steps[name], saved[name] = step_of(*network(grid, name))
        except InputError:
            continue
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 2):
        for name, step in steps.items():
            taken = step()
            if turn >= 2:
                times[name].append(taken)
    baseline = times[BASELINE]
    return {
        name: {
            "ms": 1e3 * median(found),
            "ratio": median(a / b for a, b in zip(found, baseline, strict=True)),
            "saved_mb": saved[name],
        }
        for name, found in times.items()
    }


def step_of(net: nn.Module, x: Tensor) -> tuple[Callable[[], float], float]:
    """A function that makes a training step and returns its seconds, and the megabytes saved for the backward pass."""
    target = torch.randint(10, (len(x),))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, fused=True)

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(net(x), target).backward()
        optimizer.step()
        return time.perf_counter() - start

    step()  # lazy parameters and references
    storages: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = F.cross_entropy(net(x), target)
    del loss
    return step, sum(storages.values()) / 1e6


if __name__ == "__main__":
    main()
