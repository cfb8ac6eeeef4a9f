"""Statistics over the batch of groups of channels, which leave the channels of a group decorrelated."""
