"""Statistics of several kinds, of one sample and of the batch, mixed."""
