"""Statistics of several kinds, mixed."""

from references._base import Reference

REFERENCES: dict[str, Reference] = {}
