"""Large means, constant inputs and narrow dtypes: errors stay near those of rounding."""

from laws import tests_of

from normzoo.testing import numerics

globals().update(tests_of(numerics))  # the laws that hold for layers outside the zoo, too
