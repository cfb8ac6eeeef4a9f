"""Normalizes the weight of the layer before it, not its output."""
