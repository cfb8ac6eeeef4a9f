"""What is measured, as pure functions of tensors: one idea per file."""

from normzoo.metrics.depth import growth as growth
from normzoo.metrics.depth import slope as slope
from normzoo.metrics.distances import gap as gap
from normzoo.metrics.distances import kl as kl
from normzoo.metrics.distances import w1 as w1
from normzoo.metrics.distances import w2 as w2
from normzoo.metrics.effective_rank import effective_rank as effective_rank
from normzoo.metrics.gradients import norms as norms
from normzoo.metrics.gradients import ratio as ratio
from normzoo.metrics.internal_covariate_shift import internal_covariate_shift as internal_covariate_shift
from normzoo.metrics.landscape import effective_smoothness as effective_smoothness
from normzoo.metrics.landscape import gradient_change as gradient_change
from normzoo.metrics.landscape import loss_range as loss_range
from normzoo.metrics.moments import Moments as Moments
from normzoo.metrics.moments import merge as merge
from normzoo.metrics.moments import moments as moments
from normzoo.metrics.percentiles import percentiles as percentiles
from normzoo.metrics.percentiles import rank_error as rank_error
from normzoo.metrics.percentiles import sampled as sampled
from normzoo.metrics.saturation import dead as dead
from normzoo.metrics.saturation import saturated as saturated
from normzoo.metrics.spread_between import spread_between as spread_between
