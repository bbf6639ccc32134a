"""Methods, spaces and data sets of the user, from files and from installed packages.

A plugin is a Python module with some of the tables `METHODS`, `SPACES` and `DATASETS`, which look
like those of this project. A package declares its module as an entry point:

    [project.entry-points.fewshot_clip_search]
    mine = "my_package.plugin"

A file is named by `--plugin FILE.py` or by the environment variable `FEWSHOT_PLUGINS`, which every
command and every process of a sweep reads. Only such modules are run, and they are run once per
process, when a registry is first searched for a name that the project does not have.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.util
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from trainables.core.files import expanded, read_text, temporary_folder

T = TypeVar("T")

ENVIRONMENT = "FEWSHOT_PLUGINS"
"""Environment variable with the paths of plugin files, separated as in PATH."""
GROUP = "fewshot_clip_search"
"""Group of the entry points of installed packages."""
_PREFIX = "fewshot_plugin_"  # of the names of modules that are files
TABLES = ("METHODS", "SPACES", "DATASETS")
"""Tables that a plugin may have."""


class PluginError(ValueError):
    """A plugin cannot be loaded; the message gives the rule, the value and the fix."""


class Registry(Mapping[str, T]):
    """Entries by name: those of the project, then those of plugins."""

    def __init__(self, table: str, own: Mapping[str, T]) -> None:
        """`table` is the plugins' name for it, one of `TABLES`."""
        self._table, self._own = table, own

    def __getitem__(self, name: str) -> T:
        """Return an entry; raises `KeyError` and `PluginError`."""
        return self._own[name] if name in self._own else self._added()[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names; raises `PluginError`."""
        return iter((*self._own, *self._added()))

    def __len__(self) -> int:
        """Count the entries; raises `PluginError`."""
        return len(self._own) + len(self._added())

    def _added(self) -> dict[str, T]:
        found: dict[str, T] = {}
        for module in plugins():
            added = getattr(module, self._table, {})
            if twice := sorted({*self._own, *found} & {*added}):
                raise PluginError(
                    f"The names of a plugin must be new, and '{twice[0]}' in {self._table} of "
                    f"'{module.__name__}' is taken. Rename it."
                )
            found |= added
        return found


def plugins() -> tuple[ModuleType, ...]:
    """The modules of all plugins of this process; raises `PluginError`."""
    return (*_installed(), *_from_files(_files()))


def use_plugins(files: tuple[str, ...]) -> None:
    """Use these files in this process and in those that it starts; raises `PluginError`."""
    os.environ[ENVIRONMENT] = os.pathsep.join(map(str, _with(files)))


def plugin_sources(files: tuple[str, ...] = ()) -> dict[str, str]:
    """The files of this process and `files`, for other processes: name -> source. Raises
    `PluginError`."""
    return {path.name: _source(path) for path in _with(files)}


def receive_plugins(sources: Mapping[str, str]) -> None:
    """Use the files of a sweep's driver, and no others, in this process, which may run on another
    machine; raises `PluginError`."""
    if {path.name: path.is_file() and _source(path) for path in _files()} == dict(sources):
        return
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        for name, source in sources.items():
            (folder / name).write_text(source, encoding="utf-8")
        os.environ[ENVIRONMENT] = ""
        use_plugins(tuple(str(folder / name) for name in sources))
        atexit.register(stack.pop_all().close)  # until then, errors quote the files


def plugin_fingerprints(names: Collection[str]) -> dict[str, str]:
    """`plugin.NAME` -> digest of the module's source, for every plugin that has one of the names in
    a table."""
    found = {}
    for module in plugins():
        own = {name for table in TABLES for name in getattr(module, table, {})}
        if own & {*names} and module.__file__:
            digest = hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()
            found[f"plugin.{module.__name__.removeprefix(_PREFIX)}"] = digest
    return found


def _with(files: tuple[str, ...]) -> list[Path]:
    """The files of this process and these; raises `PluginError` if one is no plugin."""
    given = [expanded(path).absolute() for path in files]
    wanted = list(dict.fromkeys([*_files(), *given]))
    names = [path.name for path in wanted]
    if twice := [str(path) for path in wanted if names.count(path.name) > 1]:
        raise PluginError(
            f"The files of plugins must have different names, got {' and '.join(twice)}. Rename "
            "one of them."
        )
    _installed()
    _from_files(wanted)
    return wanted


def _files() -> list[Path]:
    return [Path(path) for path in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if path]


@cache
def _installed() -> tuple[ModuleType, ...]:
    found = []
    for entry in entry_points(group=GROUP):
        try:
            found.append(entry.load())
        except Exception as error:  # whatever a foreign module raises
            what = f"the package of the plugin '{entry.name}'"
            raise PluginError(_failed(what, error)) from error
    return tuple(found)


def _from_files(paths: Iterable[Path]) -> list[ModuleType]:
    return [_from_file(path, _source(path)) for path in paths]


@cache  # a module is run once per process, unless its file changes
def _from_file(path: Path, source: str) -> ModuleType:
    name = f"{_PREFIX}{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or path.suffix != ".py":
        raise PluginError(f"A plugin must be a Python file, got '{path}'. Use --plugin FILE.py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a foreign module raises
        del sys.modules[name]
        raise PluginError(_failed(f"the plugin '{path}'", error)) from error
    if not any(hasattr(module, table) for table in TABLES):
        raise PluginError(
            f"A plugin must have one of the tables {', '.join(TABLES)}, and '{path}' has none. Add "
            "one, e.g. METHODS = {'my-method': MyMethod}."
        )
    return module


def _source(path: Path) -> str:
    try:
        return read_text(path)
    except OSError as error:
        raise PluginError(
            f"A plugin must be a Python file that can be read, and '{path}' is not ({error}). "
            "Correct --plugin or FEWSHOT_PLUGINS."
        ) from None


def _failed(what: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"Importing {what} failed ({type(error).__name__}: {reason}). Correct its code."
