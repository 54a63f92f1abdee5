"""Captioned works with creators and licences: the table, its import, its near-duplicates and its splits."""

from assay.works.table import SCHEMA, Works

__all__ = ["SCHEMA", "Works"]
