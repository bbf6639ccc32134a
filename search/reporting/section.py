"""A part of a report."""

from __future__ import annotations

from dataclasses import dataclass

from search.reporting.figures import Figure
from search.reporting.tables import Table


@dataclass(frozen=True)
class Section:
    """Words, tables and figures under one heading."""

    name: str
    """Of its anchor on the page."""
    title: str
    """Its heading."""
    notes: tuple[str, ...] = ()
    """Paragraphs, as plain text."""
    tables: tuple[Table, ...] = ()
    """Shown before the figures."""
    figures: tuple[Figure, ...] = ()
    """In their order."""
