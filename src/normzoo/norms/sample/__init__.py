"""Statistics within one sample: no state, training equals evaluation.

EvoNormB0 takes a statistic over the batch as well, and stands here because it is one of a pair with EvoNormS0, found by
the same search and read side by side.
"""
