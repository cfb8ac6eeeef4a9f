"""Statistics of groups of channels over the batch, which decorrelate the channels of a group."""
