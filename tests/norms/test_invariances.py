"""What the facts say of the output is what the layer does: two-sided, observed == declared."""

from laws import tests_of

from normzoo.testing import facts

globals().update(tests_of(facts))  # the laws that hold for layers outside the zoo, too
