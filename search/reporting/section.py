"""A part of a report."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass

from search.reporting.figures import Figure
from search.reporting.tables import Table


@dataclass(frozen=True)
class Picture:
    """A small image from the data."""

    png: bytes
    """Its content."""
    caption: str
    """Below it."""
    name: str
    """In place of it, where it cannot be seen."""

    @property
    def base64(self) -> str:
        """For a data URI."""
        return b64encode(self.png).decode()


@dataclass(frozen=True)
class Gallery:
    """Pictures of one kind."""

    title: str
    """What they have in common."""
    pictures: tuple[Picture, ...]
    """In their order."""


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
    galleries: tuple[Gallery, ...] = ()
    """After the tables."""
    files: tuple[Table, ...] = ()
    """Too long for the page: written beside it only."""
