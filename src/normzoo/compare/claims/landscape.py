"""BatchNorm makes the landscape smoother; noise after it, which makes distributions unstable, does no harm."""

from collections.abc import Sequence

from normzoo.compare.claims._claim import Claim, Rule, Values, grid
from normzoo.compare.claims._run import Run, typical
from normzoo.norms import NoisyBatchNorm

RANGE = "range of the loss, NoNorm / BatchNorm"
CHANGE = "change of the gradient, NoNorm / BatchNorm"
ACCURACY = "test accuracy in %, {}"
ABOVE_NONE = "accuracy, NoisyBatchNorm - NoNorm"
BELOW_BN = "accuracy, BatchNorm - NoisyBatchNorm"
ICS = "gradient-defined shift, BatchNorm / NoNorm"


def measure(seed: int, runs: Sequence[Run]) -> Values:
    """How much smoother the landscape is with BatchNorm, the median over training, and the accuracies."""
    run = {one.norm: one for one in runs}
    none, batch, noisy = (run[norm] for norm in ("NoNorm", "BatchNorm", "NoisyBatchNorm"))

    def ratio(metric: str) -> float:
        return typical(none, "LossLandscape", metric) / typical(batch, "LossLandscape", metric)

    shift = [typical(one, "InternalCovariateShift", "ics_l2") for one in (batch, none)]
    return {
        RANGE: ratio("loss_range"),
        CHANGE: ratio("gradient_change_max"),
        **{ACCURACY.format(norm): one.accuracy for norm, one in run.items()},
        ABOVE_NONE: noisy.accuracy - none.accuracy,
        BELOW_BN: batch.accuracy - noisy.accuracy,
        ICS: shift[0] / shift[1],
    }


CLAIM = Claim(
    name="landscape",
    paper=str(NoisyBatchNorm.facts.paper),
    place="section 2.1, figure 2 (noise); section 3.1, figure 4 (landscape)",
    statement="Batch normalization makes loss and gradient vary less along the gradient. With noise behind it, which "
    "makes distributions less stable than without batch normalization, a network trains as well.",
    figure="plots, without numbers: VGG on CIFAR-10",
    setting="6 x 100 ReLU units, torch's default initialization, batches of 128, SGD at 0.1, 600 steps on "
    "Fashion-MNIST; along the gradient half to four times the rate.",
    grids={"landscape": grid("landscape.yaml", "norm=NoNorm,BatchNorm,NoisyBatchNorm", "seed=0..4")},
    seeds=range(5),
    measure=measure,
    rules=(
        Rule(RANGE, least=2.5),
        Rule(CHANGE, least=1.4),
        Rule(ABOVE_NONE, least=4),
        Rule(BELOW_BN, most=4),
    ),
    remarks=(
        "The paper also finds that batch normalization does not reduce the internal covariate shift as gradients show "
        "it. Here that depends on the initialization: the ratio above is not judged, and with He's it is below 1.",
        "With He's initialization the network trains as well without a norm, and the noise costs 1 to 2 points.",
    ),
)
