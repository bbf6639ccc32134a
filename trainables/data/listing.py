"""Listing folders and reading list files of a data set: sorted, quickly, and never written to."""

from __future__ import annotations

import os
from pathlib import Path

from trainables.data.base import DataError
from trainables.data.images import SUFFIXES


def folders_in(folder: Path) -> list[str]:
    """Names of the visible folders in a folder, sorted; raises `DataError`."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(
                entry.name for entry in entries if _visible(entry.name) and entry.is_dir()
            )
    except OSError as error:
        raise DataError(_cannot_list(folder, error)) from None
    return _as_text(folder, found)


def images_in(folder: Path) -> list[str]:
    """Names of the visible image files in a class folder, sorted, by their suffix alone: nothing
    is opened, so that a million files are listed in seconds. Raises `DataError`, also where there
    are none."""
    try:
        found = sorted(
            name
            for name in os.listdir(folder)
            if name.lower().endswith(SUFFIXES) and _visible(name)
        )
    except OSError as error:
        raise DataError(_cannot_list(folder, error)) from None
    if not found:
        raise DataError(
            f"Every class folder holds images: '{folder}' has none. Add some, or leave the class "
            "out."
        )
    return _as_text(folder, found)


def holds_anything(folder: Path) -> bool:
    """Whether there is such a folder with something visible in it."""
    try:
        with os.scandir(folder) as entries:
            return any(_visible(entry.name) for entry in entries)
    except OSError:
        return False


def read_lines(file: Path) -> list[str]:
    """The lines of a list file that hold something, stripped; raises `DataError`."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"A list of the data set cannot be read: '{file}' ({error}).") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _visible(name: str) -> bool:
    """Not what file managers and notebooks leave behind."""
    return not name.startswith((".", "@", "__"))


def _as_text(folder: Path, names: list[str]) -> list[str]:
    """The names, all UTF-8, as which they are hashed and written down; raises `DataError`."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"Names of files and folders are UTF-8: {os.fsencode(name)!r} in '{folder}' is "
                "not. Rename it."
            ) from None
    return names


def _cannot_list(folder: Path, error: OSError) -> str:
    return (
        f"A folder of the data set must be there and readable: '{folder}' is not "
        f"({error.strerror}). Put it there."
    )
