"""The LightningModules, and what they share: learning rate schedules and parameter groups."""

from normzoo.tasks.classifier import Classifier as Classifier
from normzoo.tasks.parameter_groups import parameter_groups as parameter_groups
from normzoo.tasks.schedules import WarmupCosine as WarmupCosine
