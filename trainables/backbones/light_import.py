"""Imports open_clip without the packages that few models need.

open_clip imports timm and transformers if they are installed, and all of torchvision. Together
they take most of the time until a process can encode an image, and every worker is a process. They
are imported when a model needs them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_OPTIONAL = ("timm", "transformers")
_PACKAGES = ("torchvision", "torchvision.ops")  # of which open_clip uses single modules


@contextmanager
def without_optional_packages() -> Iterator[None]:
    """While open, `timm` and `transformers` cannot be imported, and the modules of torchvision are
    imported without those that its packages import. Afterwards all of them can be imported."""
    hidden = [name for name in _OPTIONAL if name not in sys.modules]
    bare = [] if "torchvision" in sys.modules else _PACKAGES
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment] # an import raises ImportError
    for name in bare:
        sys.modules[name] = _bare_package(name)
    try:
        yield
    finally:
        for name in (*hidden, *bare):
            del sys.modules[name]


def complete_on_first_use(module: types.ModuleType, tower: type[Any]) -> None:
    """Import a module of open_clip again, with the optional packages that it uses, when an object
    of its class `tower` is created for the first time. The class stays the same."""
    initialise = tower.__init__

    def complete(self: Any, *values: Any, **named: Any) -> None:
        tower.__init__ = initialise
        importlib.reload(module)  # into the same namespace, in which the class finds its globals
        setattr(module, tower.__name__, tower)
        initialise(self, *values, **named)

    tower.__init__ = complete


def _bare_package(name: str) -> types.ModuleType:
    """A package that finds its modules, and has not imported any."""
    package = types.ModuleType(name)
    spec = importlib.util.find_spec(name)
    assert spec is not None, name
    package.__spec__, package.__path__ = spec, list(spec.submodule_search_locations or ())
    return package
