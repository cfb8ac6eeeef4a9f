"""BatchNorm speeds up a small sigmoid network, and keeps the inputs of its nonlinearities stable."""

from collections.abc import Sequence

import numpy as np

from normzoo.compare.claims._claim import Claim, Rule, Values, grid
from normzoo.compare.claims._run import Run
from normzoo.norms import BatchNorm

RATIO = "steps to 95 %, NoNorm / BatchNorm"
GROWTH = "growth of the 15-85 width, {}"


def measure(seed: int, runs: Sequence[Run]) -> Values:
    """Steps to 95 % validation accuracy, and how much wider the inputs of the last nonlinearity become."""
    steps = {run.norm: run.steps_to(0.95) for run in runs}
    return {
        **{f"steps to 95 %, {norm}": number for norm, number in steps.items()},
        RATIO: steps["NoNorm"] / steps["BatchNorm"],
        **{GROWTH.format(run.norm): growth(run) for run in runs},
    }


def growth(run: Run) -> float:
    """The width between the 15th and the 85th percentile, last sample by first; the median over ten units."""
    low, high = (run.table("ActivationPercentiles", f"unit_p{share}") for share in (15, 85))
    width = (high - low)[:, -10:]  # of the last layer
    return float(np.median(width[-1] / width[0]))


CLAIM = Claim(
    name="bn-sigmoid",
    paper=str(BatchNorm.facts.paper),
    place="section 4.1, figure 1",
    statement="With batch normalization a sigmoid network trains faster, and the distributions of the inputs of its "
    "nonlinearities are more stable.",
    figure="a plot, without numbers: 50,000 steps on MNIST",
    setting="3 x 100 sigmoid units, batches of 60, weights from N(0, 0.1²), SGD at 0.1, 3,000 steps on 8 x 8 digits.",
    grids={"bn-sigmoid": grid("bn_sigmoid.yaml", "norm=NoNorm,BatchNorm", "seed=0..2")},
    measure=measure,
    rules=(
        Rule(RATIO, least=5),
        Rule(GROWTH.format("NoNorm"), least=15),
        Rule(GROWTH.format("BatchNorm"), most=6),
    ),
    remarks=(
        "Most of it is the rate: with the best of 0.1, 0.3, 1 and 3 for each norm, the ratio of steps is 6.5 (seed 0).",
    ),
)
