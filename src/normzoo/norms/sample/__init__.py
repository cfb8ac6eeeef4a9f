"""Statistics within one sample: no state, training equals evaluation."""
