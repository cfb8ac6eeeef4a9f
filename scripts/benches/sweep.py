"""`scripts/bench sweep`: how well networks train with each layer of the zoo, at several learning rates.

Each layer is trained in an MLP, a ConvNet and a ResNet-8 on Digits, with every rate and seed, by plain SGD with
momentum; a run ends early when its loss is NaN or infinite. The accuracy on the test images goes into a JSON file, from
which `scripts/docs training` makes docs/training.md. The file is written after each run: killed and started again, the
sweep makes the runs that are missing. A layer that needs positions is not tried in the MLP.

It judges nothing: the exit status is 0.
"""

import argparse
import json
import math
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

sys.path.insert(0, str(Path(__file__).parent))
from machine import describe  # beside this file

from normzoo.data import Digits
from normzoo.models import MLP, ConvNet, ResNet
from normzoo.models._base import Network
from normzoo.norms import layers
from normzoo.runs.atomic import written_whole

NETWORKS: dict[str, tuple[type[Network], dict[str, Any]]] = {
    "MLP": (MLP, {"hidden": [32, 32, 32]}),
    "ConvNet": (ConvNet, {"widths": [8, 8, 16, 16]}),
    "ResNet-8": (ResNet, {"depth": 8, "width": 8}),
}
RATES = (0.01, 0.03, 0.1, 0.3)
SEEDS = (0, 1, 2)
EPOCHS = 6
BATCH_SIZE = 64
MOMENTUM = 0.9

# Network, layer, learning rate, seed.
Run = tuple[str, str, float, int]


def main() -> None:
    """Makes the runs that the file lacks, and writes each into it."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default="docs/training.json", metavar="FILE", help="default: %(default)s")
    parser.add_argument("--only", metavar="NAMES", help="which layers, separated by commas; all of them by default")
    parser.add_argument("--again", action="store_true", help="make the runs of these layers anew")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of each run (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: the number of cores")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(layers())
    for name in names:
        if name not in layers():
            parser.error(f"no layer is called {name}. The zoo has {', '.join(layers())}")
    budget = {
        "networks": {name: settings for name, (_, settings) in NETWORKS.items()},
        "epochs": arguments.epochs,
        "batch_size": BATCH_SIZE,
        "momentum": MOMENTUM,
        "rates": list(RATES),
        "seeds": list(SEEDS),
    }
    report = json.loads(arguments.json.read_text()) if arguments.json.exists() else {"budget": budget, "runs": {}}
    if report["budget"] != budget:
        parser.error(f"{arguments.json} has runs of another budget: remove it, or name another file with --json")
    if arguments.again:
        report["runs"] = {key: found for key, found in report["runs"].items() if key.split()[1] not in names}
    report["machine"] = describe()
    sweep(report, [run for run in runs(names) if key_of(run) not in report["runs"]], arguments)


def sweep(report: dict[str, Any], missing: list[Run], arguments: argparse.Namespace) -> None:
    """Makes the missing runs, and writes the report after each of them."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    context = multiprocessing.get_context("spawn")
    done = len(report["runs"])
    with (
        ProcessPoolExecutor(max(arguments.processes, 1), context, initializer=start) as pool,
        Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress,
    ):
        bar = progress.add_task("", total=done + len(missing), completed=done)
        futures = {pool.submit(accuracy_of, run, arguments.epochs): run for run in missing}
        for future in as_completed(futures):
            key = key_of(futures[future])
            report["runs"][key] = future.result()
            with written_whole(arguments.json) as file:
                file.write(as_json(report).encode())
            progress.update(bar, advance=1, description=key)
    print(f"{len(missing)} runs made, {done} found in {arguments.json}")


def runs(names: list[str]) -> Iterator[Run]:
    """All runs of the named layers that their facts allow."""
    for name in names:
        for network, (kind, _) in NETWORKS.items():
            if layers()[name].facts.dense or kind is not MLP:
                yield from ((network, name, rate, seed) for rate in RATES for seed in SEEDS)


def key_of(run: Run) -> str:
    """The name of a run in the file."""
    return " ".join(map(str, run))


def as_json(report: dict[str, Any]) -> str:
    """The report, with a line for each run, in order."""
    order = {key_of(run): place for place, run in enumerate(runs(list(layers())))}
    found = sorted(report["runs"].items(), key=lambda item: order.get(item[0], len(order)))
    return json.dumps({**report, "runs": dict(found)}, indent=1) + "\n"


def start() -> None:
    """Prepares a process for its runs: one thread for tiny tensors, and an end with the process that started it."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@cache
def digits(seed: int) -> Digits:
    """The data, in the order of a seed."""
    data = Digits(batch_size=BATCH_SIZE, eval_batch_size=Digits.train_size, val_size=0, shuffle_seed=seed)
    data.setup()
    return data


def accuracy_of(run: Run, epochs: int) -> float | None:
    """Trains a network; the share of the test images that it classifies correctly, or None for a loss of NaN."""
    network, name, rate, seed = run
    kind, settings = NETWORKS[network]
    data = digits(seed)
    torch.manual_seed(seed)
    net = kind(data.input_shape, data.num_classes, norm=layers()[name], **settings)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=MOMENTUM)
    batches = data.train_dataloader()
    for epoch in range(epochs):
        batches.sampler.set_epoch(epoch)  # type: ignore[attr-defined] # the sampler is ours
        for images, labels in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(data.normalize(images)), labels)
            if not math.isfinite(loss.item()):
                return None
            loss.backward()
            optimizer.step()
    net.eval()
    [(images, labels)] = data.test_dataloader()
    with torch.no_grad():
        logits = net(data.normalize(images))
    return round((logits.argmax(1) == labels).double().mean().item(), 4) if logits.isfinite().all() else None


if __name__ == "__main__":
    main()
