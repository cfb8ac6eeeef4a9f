"""What a run shows while it trains: one callback per question, each usable in any Lightning project."""

from normzoo.callbacks.activation_percentiles import ActivationPercentiles as ActivationPercentiles
from normzoo.callbacks.covariate_shift import CovariateShift as CovariateShift
from normzoo.callbacks.finite_loss import FiniteLoss as FiniteLoss
from normzoo.callbacks.freeze_norms import FreezeNorms as FreezeNorms
from normzoo.callbacks.gradient_flow import GradientFlow as GradientFlow
from normzoo.callbacks.hparams import HParams as HParams
from normzoo.callbacks.internal_covariate_shift import InternalCovariateShift as InternalCovariateShift
from normzoo.callbacks.loss_landscape import LossLandscape as LossLandscape
from normzoo.callbacks.predictions import PredictionsCSV as PredictionsCSV
from normzoo.callbacks.progress import ProgressBar as ProgressBar
from normzoo.callbacks.recalibrate import Recalibrate as Recalibrate
from normzoo.callbacks.running_statistics import RunningStatistics as RunningStatistics
from normzoo.callbacks.training_curve import TrainingCurve as TrainingCurve
from normzoo.callbacks.verdicts import Verdicts as Verdicts
from normzoo.monitoring.schedule import Every as Every
from normzoo.monitoring.schedule import Logarithmic as Logarithmic
from normzoo.runs.change import Change as Change
from normzoo.runs.exact_resume import ExactResume as ExactResume
from normzoo.runs.record import Record as Record
from normzoo.runs.shared_run import SharedRun as SharedRun

MONITORS = (
    RunningStatistics,
    CovariateShift,
    GradientFlow,
    ActivationPercentiles,
    InternalCovariateShift,
    LossLandscape,
)
"""Those that `normzoo fit` adds."""
