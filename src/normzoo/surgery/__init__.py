"""Normalization layers in networks that exist: each function changes a network in place and returns a `Report`."""

from normzoo.surgery.adapt import adapt as adapt
from normzoo.surgery.fold import fold as fold
from normzoo.surgery.freeze import freeze as freeze
from normzoo.surgery.recalibrate import recalibrate as recalibrate
from normzoo.surgery.replace import replace as replace
from normzoo.surgery.report import Report as Report
from normzoo.surgery.report import undo as undo
