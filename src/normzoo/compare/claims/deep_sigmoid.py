"""BatchNorm trains a deep sigmoid network, whose gradient vanishes without."""

from collections.abc import Sequence

from normzoo.compare.claims._claim import Claim, Rule, Values, grid
from normzoo.compare.claims._run import Run, best
from normzoo.norms import BatchNorm

ACCURACY = "test accuracy in %, {}"


def measure(seed: int, runs: Sequence[Run]) -> Values:
    """The test accuracy of each norm at the best of the rates."""
    return {ACCURACY.format(norm): best(runs, norm) for norm in ("NoNorm", "BatchNorm", "LayerNorm")}


CLAIM = Claim(
    name="deep-sigmoid",
    paper=str(BatchNorm.facts.paper),
    place="section 4.2.2",
    statement="Batch normalization makes it possible to train deep networks with sigmoid nonlinearities, although they "
    "are hard to train.",
    figure="Inception with sigmoid on ImageNet: 69.8 % with, at most 0.1 % without, which is chance",
    setting="20 x 100 sigmoid units, 300 steps of SGD with momentum on 8 x 8 digits, the best of three rates.",
    grids={
        "deep-sigmoid": grid(
            "deep_sigmoid.yaml", "norm=NoNorm,BatchNorm,LayerNorm", "model.optimizer.lr=0.01,0.1,1", "seed=0..2"
        )
    },
    measure=measure,
    rules=(Rule(ACCURACY.format("NoNorm"), most=20), Rule(ACCURACY.format("BatchNorm"), least=90)),
    remarks=(
        "LayerNorm does not rescue the deep sigmoid network.",
        "With 20 ReLU layers BatchNorm trains no better than He initialization without a norm.",
    ),
)
