"""The LightningModules, and their learning rate schedules."""

from normzoo.tasks.classifier import Classifier as Classifier
from normzoo.tasks.schedules import WarmupCosine as WarmupCosine
