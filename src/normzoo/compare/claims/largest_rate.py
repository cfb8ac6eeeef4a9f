"""BatchNorm allows larger learning rates."""

from collections.abc import Sequence

from normzoo.compare.claims._claim import Claim, Rule, Values, grid
from normzoo.compare.claims._run import Run

LARGEST = "largest rate that reaches 90 %, {}"
RATIO = "largest rate, BatchNorm / NoNorm"
RATE = "model.optimizer.lr"


def measure(seed: int, runs: Sequence[Run]) -> Values:
    """The largest rate of each norm at which the test accuracy is at least 90 %."""
    trained = [run for run in runs if run.accuracy >= 90]
    largest = {
        norm: max((run.cell[RATE] for run in trained if run.norm == norm), default=float("nan"))
        for norm in ("NoNorm", "BatchNorm")
    }
    return {LARGEST.format(norm): rate for norm, rate in largest.items()} | {
        RATIO: largest["BatchNorm"] / largest["NoNorm"]
    }


CLAIM = Claim(
    name="largest-rate",
    paper="Understanding Batch Normalization (2018, arXiv 1806.02375)",
    place="section 2, figure 1",
    statement="Batch normalization primarily enables training with larger learning rates; without it they diverge.",
    figure="ResNet-110 on CIFAR-10: 0.0001 without, 0.1 with batch normalization",
    setting="9 x 100 ReLU units and a head, SGD with momentum 0.9, 20 epochs of 8 x 8 digits, two rates per decade.",
    grids={
        "largest-rate": grid(
            "largest_rate.yaml", "norm=NoNorm,BatchNorm", f"{RATE}=0.01,0.032,0.1,0.32,1,3.2", "seed=0..2"
        )
    },
    measure=measure,
    rules=(Rule(RATIO, least=5),),
    remarks=("A run whose loss becomes NaN counts as an accuracy of 0.",),
)
