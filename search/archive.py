"""`python -m search.archive`: packs a sweep's folder into one file, and can remove the folder."""

from __future__ import annotations

import hashlib
import sys
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from search.core.lock import CLAIMS, SweepLock
from search.core.problems import StoppedError, UsageError
from search.core.relocation import begin_removal, finish_removal
from search.core.sweep_folder import SweepFolder, find_sweep
from search.delete import readable_size
from search.terminal.console import open_console
from search.terminal.exit_code import exit_code
from search.terminal.parser import Parser, text
from trainables.core.credentials import without_password
from trainables.core.files import expanded
from trainables.core.storage import LocalStorage, Storage, join, open_storage

_INTRODUCTION = """\
Pack a sweep's folder into NAME.tar.gz and compare the file with the folder.

`tar -xzf NAME.tar.gz` in a storage folder restores the sweep. MLflow keeps its runs. After an
interruption, run the same command again."""


def build_parser() -> Parser:
    """All options."""
    parser = Parser("search.archive", _INTRODUCTION)
    parser.add_argument("name", metavar="NAME", help="name of the sweep")
    parser.add_storage()
    parser.add_argument(
        "--output",
        type=text,
        metavar="FILE",
        help="the archive, a new .tar.gz file on this machine (default: NAME.tar.gz beside the "
        "sweep's folder)",
    )
    parser.add_argument(
        "--remove",
        action="store_true",
        help="remove the sweep's folder after the archive was compared with it",
    )
    return parser


def _target(output: str | None, name: str, storage: str) -> tuple[Storage, str]:
    """The archive's folder and name; raises `UsageError`."""
    if output is None:
        return open_storage(storage), f"{name}.tar.gz"
    path = expanded(output).absolute()
    found = []
    if not path.name.endswith((".tar.gz", ".tgz")):
        found.append(f"--output must end in .tar.gz, got '{output}'. Use e.g. {name}.tar.gz.")
    if not path.parent.is_dir():
        found.append(f"The folder of --output must exist, got '{output}'. Create {path.parent}.")
    if found:
        raise UsageError(found)
    return LocalStorage(path.parent), path.name


def _pack(sweep: SweepFolder, place: Storage, file: str) -> int:
    """Write the archive unless it exists, compare it, and return its size; raises `UsageError` for
    another file of this name, `StoppedError` if the folder has changed meanwhile."""
    is_there = place.exists(file)
    if not is_there:
        place.write_with(file, lambda path: write_archive(sweep.files, sweep.name, path))
    with place.as_local_file(file) as path:
        why, size = archive_problem(sweep.files, sweep.name, path), path.stat().st_size
    if why and is_there:
        raise UsageError(
            [
                f"An archive is never replaced, and '{file}' is not one of '{sweep.name}' as it "
                f"is now: {why}. Remove the file, or use another --output."
            ]
        )
    if why:
        place.delete(file)
        raise StoppedError(f"the archive differs from the folder ({why}); run the command again")
    return size


def archive(
    name: str,
    storage: str,
    output: str | None = None,
    remove: bool = False,
    say: Callable[[str], None] = lambda _: None,
    report: Callable[[str], None] = lambda _: None,
) -> str:
    """Pack a sweep into a new archive, `output` or NAME.tar.gz beside its folder, compare both, and
    with `remove` remove the folder; return the archive's location.

    `say` gets one line if another process owns the sweep, `report` one per step that is done.
    Raises `UsageError`, `StorageError`, `StoppedError`.
    """
    sweep = find_sweep(name, storage)
    place, file = _target(output, sweep.name, storage)
    command, where = f"archive {sweep.name} --remove", join(place.location, file)
    with SweepLock(sweep.files, say):
        left = sweep.unfinished()
        if not (remove and left is not None and left.command == command):
            sweep.claim_id()  # raises for a sweep that is not complete
            size = _pack(sweep, place, file)
            shown = f"{without_password(where)} ({readable_size(size)})"
            report(f"Archive: {shown}, equal to the folder")
        if remove:
            begin_removal(sweep, command)
            finish_removal(sweep)
            report(f"Removed '{without_password(sweep.files.location)}'.")
    return where


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 when the archive is complete, 2 for a mistake."""
    return exit_code(lambda: _run(arguments), "Interrupted. Run the same command again.")


def _run(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    outputs = open_console(stderr=True).print, open_console().print
    archive(options.name, options.storage, options.output, options.remove, *outputs)
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
