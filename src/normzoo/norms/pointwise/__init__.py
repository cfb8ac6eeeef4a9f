"""No statistics at all: each value on its own."""
