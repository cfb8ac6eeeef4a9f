"""What a run shows while it trains: one callback per question, each usable in any Lightning project."""

from normzoo.callbacks.hparams import HParams as HParams
from normzoo.callbacks.predictions import PredictionsCSV as PredictionsCSV
from normzoo.callbacks.progress import ProgressBar as ProgressBar
