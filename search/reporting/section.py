"""Sections of a report."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass

from search.reporting.figures import Figure
from search.reporting.tables import Table


@dataclass(frozen=True)
class Picture:
    """A small image from the data set."""

    png: bytes
    """Content of the PNG file."""
    caption: str
    """Text below the image."""
    name: str
    """Alternative text."""

    @property
    def base64(self) -> str:
        """The PNG file in base64, for a data URI."""
        return b64encode(self.png).decode()


@dataclass(frozen=True)
class Gallery:
    """A group of related pictures."""

    title: str
    """Title of the group."""
    pictures: tuple[Picture, ...]
    """Pictures in display order."""


@dataclass(frozen=True)
class Section:
    """Text, tables and figures under one heading."""

    name: str
    """Anchor on the page."""
    title: str
    """Heading."""
    notes: tuple[str, ...] = ()
    """Paragraphs, as plain text."""
    tables: tuple[Table, ...] = ()
    """Tables, shown before the figures."""
    figures: tuple[Figure, ...] = ()
    """Figures in display order."""
    galleries: tuple[Gallery, ...] = ()
    """Galleries, shown after the tables."""
    files: tuple[Table, ...] = ()
    """Tables that are too long for the page and are only written as files."""
