"""A sweep's folder in one `.tar.gz` file, compared with the folder after it was written."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from pathlib import Path

from search.core.lock import CLAIMS
from trainables.core.storage import Storage


def write_archive(sweep: Storage, name: str, path: Path) -> None:
    """Write every file of a sweep except claims to `path`, below a folder `name`; raises
    `OSError`."""
    with tarfile.open(path, "w:gz") as archive:
        for file in _files(sweep):
            with sweep.as_local_file(file) as local:
                archive.add(local, f"{name}/{file}", recursive=False)


def archive_problem(sweep: Storage, name: str, path: Path) -> str:
    """Return how an archive differs from the folder; empty if it holds exactly the same files."""
    missing = set(_files(sweep))
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                file = member.name.removeprefix(f"{name}/")
                stored = archive.extractfile(member) if member.isreg() else None
                if stored is None or file not in missing:
                    return f"it holds '{member.name}', which is not in the folder"
                with sweep.as_local_file(file) as local, open(local, "rb") as ours:
                    digest = hashlib.file_digest(ours, "sha256").digest()
                if hashlib.file_digest(stored, "sha256").digest() != digest:  # type: ignore[arg-type]
                    return f"its '{file}' differs from that in the folder"
                missing.remove(file)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        return f"it cannot be read ({error})"
    return f"it lacks {len(missing)} files, e.g. '{min(missing)}'" if missing else ""


def _files(sweep: Storage) -> list[str]:
    return [file for file in sweep.files() if not file.startswith(f"{CLAIMS}/")]
