"""Statistics over the batch: the samples N and the positions s, per channel."""
