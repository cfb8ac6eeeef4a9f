"""The laws that a normalization layer obeys, for layers of your own: `check_norm(MyNorm)` in a test."""

from normzoo.testing._check import LAWS as LAWS
from normzoo.testing._check import Review as Review
from normzoo.testing._check import check_norm as check_norm
from normzoo.testing._law import Law as Law

__all__ = ["check_norm", "Review", "LAWS", "Law"]
