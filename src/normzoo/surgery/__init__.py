"""Normalization layers in networks that exist: each function changes a network in place and returns a `Report`."""

from normzoo.surgery.adapt import adapt as adapt
from normzoo.surgery.recalibrate import recalibrate as recalibrate
from normzoo.surgery.report import Report as Report
from normzoo.surgery.report import undo as undo
