"""What papers found, checked at a small scale: a recipe per file, each with its grid, its measure and its rules."""

from normzoo.compare.claims._claim import Claim as Claim
from normzoo.compare.claims._claim import Measured as Measured
from normzoo.compare.claims._claim import Row as Row
from normzoo.compare.claims._claim import Rule as Rule
from normzoo.compare.claims._claim import Verdict as Verdict
from normzoo.compare.claims._claim import shown as shown
from normzoo.compare.claims._run import Run as Run
from normzoo.compare.claims.bn_sigmoid import CLAIM as BN_SIGMOID
from normzoo.compare.claims.deep_sigmoid import CLAIM as DEEP_SIGMOID
from normzoo.compare.claims.gradient_explosion import CLAIM as GRADIENT_EXPLOSION
from normzoo.compare.claims.invariances import CLAIM as INVARIANCES
from normzoo.compare.claims.landscape import CLAIM as LANDSCAPE
from normzoo.compare.claims.largest_rate import CLAIM as LARGEST_RATE
from normzoo.compare.claims.small_batch import CLAIM as SMALL_BATCH
from normzoo.compare.claims.test_time_bn import CLAIM as TEST_TIME_BN

CLAIMS = {
    claim.name: claim
    for claim in (
        INVARIANCES,
        GRADIENT_EXPLOSION,
        BN_SIGMOID,
        DEEP_SIGMOID,
        LARGEST_RATE,
        SMALL_BATCH,
        TEST_TIME_BN,
        LANDSCAPE,
    )
}
