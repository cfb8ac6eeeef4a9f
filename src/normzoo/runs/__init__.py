"""Runs: their folders, configurations and checkpoints, and the exact resume of a run that was cut off."""

from normzoo.runs.archive import load_checkpoint as load_checkpoint
from normzoo.runs.checkpoint_io import SafeCheckpointIO as SafeCheckpointIO
from normzoo.runs.exact_resume import ExactResume as ExactResume
from normzoo.runs.load_task import load_task as load_task
