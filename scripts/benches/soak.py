"""`scripts/bench soak`: whether a long training with everything on goes on holding as much as it held.

One run of `normzoo fit` on Digits, with validation, checkpoints, TensorBoard, the progress bar and all six monitors,
sampled as often as usual or twice as often. At equal distances it prints what the process holds: memory, open files and
threads. A row that grows from one to the next without end is a leak.

It judges nothing, and the exit status is 0; a test does. 20,000 steps, the default, take about a minute on two cores.
"""

import argparse
import os
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from monitors import fit, handles, resident  # beside this file; it sets the process up before it imports torch

# isort: split
from lightning.pytorch import Callback, Trainer
from machine import describe

from normzoo.callbacks import (
    ActivationPercentiles,
    CovariateShift,
    GradientFlow,
    InternalCovariateShift,
    LossLandscape,
    RunningStatistics,
)

STEPS = 20_000
ROWS = 10
FLAGS = (
    "--model.net.hidden=[16,16]",
    "--data.batch_size=6",
    "--data.eval_batch_size=240",
    "--trainer.enable_model_summary=false",
)


def suite() -> list[Callback]:
    """All monitors, as often as usual, and those that sample rarely twice as often."""
    return [
        RunningStatistics(50),
        CovariateShift(50),
        GradientFlow(50),
        ActivationPercentiles(50),
        InternalCovariateShift(250),
        LossLandscape(500),
    ]


class Ledger(Callback):
    """Prints what the process holds at equal distances, and then ends the run.

    Args:
        steps: of the run.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.out = sys.stdout
        self.since = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *unused: object) -> None:
        number = trainer.global_step
        if number % (self.steps // ROWS) == 0:
            seconds = time.perf_counter() - self.since
            held = f"{resident() / 2**20:9.1f} {handles():9} {threading.active_count():9} {seconds:9.0f}"
            print(f"{number:10,} {held}", file=self.out, flush=True)
        trainer.should_stop = number >= self.steps


def main() -> None:
    """Trains, and prints a row ten times."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of the training (default: {STEPS:,})")
    parser.add_argument("--config", default="digits_mlp.yaml", help="of configs/ (default: digits_mlp.yaml)")
    arguments, flags = parser.parse_known_args()
    if arguments.steps < ROWS:
        parser.error(f"--steps={arguments.steps}: at least {ROWS}.")
    print(f"{describe()}\nload      {os.getloadavg()[0]:.1f} processes besides, as it began", flush=True)
    print(f"\n{'steps':>10} {'MiB':>9} {'files':>9} {'threads':>9} {'seconds':>9}", flush=True)
    fit(arguments.config, [*suite(), Ledger(arguments.steps)], (*FLAGS, *flags), None)


if __name__ == "__main__":
    main()
