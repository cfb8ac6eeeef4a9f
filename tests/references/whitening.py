"""Channels of the batch, decorrelated."""

from references._base import Reference

REFERENCES: dict[str, Reference] = {}
