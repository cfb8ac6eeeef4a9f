"""BatchNorm fails with batches of two; norms of single samples do not, and Batch Renormalization fails less."""

from collections.abc import Sequence

from normzoo.compare.claims._claim import Claim, Rule, Values, grid
from normzoo.compare.claims._run import Run
from normzoo.norms import GroupNorm

RENORM = "BatchRenorm(warmup=100,d_steps=500,r_steps=800)"
NORMS = f"norm=BatchNorm,{RENORM},LayerNorm,GroupNorm"
ERROR = "error in %, {} at batch {}"
LAYER_GAP = "at batch 2, BatchNorm - LayerNorm"
RENORM_GAP = "at batch 2, BatchNorm - BatchRenorm"
SPREAD = "spread of LayerNorm over batches"
LARGE = "at batch 32, BatchNorm - LayerNorm"


def measure(seed: int, runs: Sequence[Run]) -> Values:
    """The test error of each norm at each batch size, and their differences in points."""
    error = {(run.norm, int(run.cell["data.batch_size"])): 100 - run.accuracy for run in runs}
    of_layer = [error["LayerNorm", size] for size in (2, 4, 32)]
    return {
        **{ERROR.format(*key): value for key, value in error.items()},
        LAYER_GAP: error["BatchNorm", 2] - error["LayerNorm", 2],
        RENORM_GAP: error["BatchNorm", 2] - error["BatchRenorm", 2],
        SPREAD: max(of_layer) - min(of_layer),
        LARGE: error["BatchNorm", 32] - error["LayerNorm", 32],
    }


def with_batches(size: int) -> tuple[str, ...]:
    """The grid for a batch size, with a rate in proportion to it."""
    settings = (f"data.batch_size={size}", f"model.optimizer.lr={0.1 * size / 32:g}")
    return grid("small_batch.yaml", NORMS, *settings, "seed=0..2")


CLAIM = Claim(
    name="small-batch",
    paper=str(GroupNorm.facts.paper),
    place="section 4.1, table 2; Batch Renormalization (2017, arXiv 1702.03275), section 4.2",
    statement="The error of batch normalization rises as the batch becomes small; that of group normalization does "
    "not, and that of batch renormalization rises less.",
    figure="ResNet-50 on ImageNet at 2 images per worker: error 34.7 % with BatchNorm, 24.1 % with GroupNorm; 23.6 % "
    "and 24.1 % at 32. Inception-v3 at 4: accuracy 74.2 % with BatchNorm, 76.5 % with BatchRenorm",
    setting="3 x 128 ReLU units, 2 epochs of 4,000 images of Fashion-MNIST, cosine, SGD at 0.1 B / 32 for a batch B.",
    grids={f"small-batch-{size}": with_batches(size) for size in (2, 4, 32)},
    measure=measure,
    rules=(
        Rule(LAYER_GAP, least=20),
        Rule(RENORM_GAP, least=8),
        Rule(SPREAD, most=5),
        Rule(LARGE, least=-5, most=5),
    ),
    remarks=(
        "BatchRenorm's schedule is the paper's, 50 times as fast, as a run of batches of 2 has 4,000 steps: with the "
        "default, of 5,000 steps of warm-up, it is BatchNorm all along.",
        "A slower average (momentum 0.01) helps BatchNorm by no more than 2 points: training and evaluation differ.",
        "The effect did not show in a plain ConvNet without a normalized head.",
    ),
)
