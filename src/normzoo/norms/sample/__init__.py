"""Statistics within one sample: no state, training equals evaluation.

EvoNormB0 also uses a statistic over the batch. It is here as the counterpart of EvoNormS0, found by the same search.
"""
