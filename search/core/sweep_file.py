"""A whole sweep as a YAML file: the options of `search.run`, without their dashes.

    space: taskres
    dataset: [digits, digits-rotated]
    shots: [1, 4]
    set: {alpha: 0.7}
    range: {lr: 1e-3:1e-1:log}
    grid: {residual: [text, both]}

Every sweep's folder has such a file, `sweep.yaml`, with all its settings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import yaml

from search.core.config import SweepConfig, option
from search.core.problems import UsageError
from trainables.core.files import expanded, read_text
from trainables.fields import read_value

NAME = "sweep.yaml"
"""Name of the file in a sweep's folder."""
_PLACES = (
    *("storage", "study_storage", "tracking_uri", "experiment", "address", "device"),
    *("gpus_per_trial", "max_concurrent", "report", "register", "init_from"),
)
"""Options that determine where a sweep runs, not its results."""
_REPEATED = ("plugin", "prompt")
_ABOUT = ("help", "help-all", "version")
_HEADER = """\
# The sweep's settings. To run it elsewhere: python -m search.run sweep.yaml
# Options after the file override it.
"""


class _Loader(yaml.BaseLoader):
    """Builds strings, lists and dicts only, and runs nothing. Every scalar stays text: to YAML,
    10:50 is a number in base 60. Aliases are refused, since a few can expand to gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("has an alias (*NAME): write the value in its place")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that is there twice, of which YAML would keep the last."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.YAMLError(f"has '{twice[0]}' twice")
        return super().construct_mapping(node, deep)


def read_options(path: str) -> list[str]:
    """Return a file's options as a command line; raises `UsageError`."""
    try:
        content = yaml.load(read_text(expanded(path)), Loader=_Loader)
    except OSError as error:
        raise _invalid(path, f"cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise _invalid(path, " ".join(str(error).split())) from None
    except RecursionError:
        raise _invalid(path, "is nested too deeply") from None
    if not isinstance(content, dict):
        raise _invalid(path, "has no options")
    if wrong := [key for key in content if not re.fullmatch("(--)?[a-z][a-z_-]*", key)]:
        raise _invalid(path, f"has {ascii(wrong[0])[:60]}, which is not an option")
    if about := [key for key in content if key.replace("_", "-").strip("-") in _ABOUT]:
        raise _invalid(path, f"has '{about[0]}', which only the command line may have")
    words: list[str] = []
    for key, value in content.items():
        name = f"--{key.removeprefix('--').replace('_', '-')}"
        texts = _texts(path, key, value)
        words += [name if text is None else f"{name}={text}" for text in texts]
    return words


def sweep_text(config: SweepConfig) -> str:
    """Return the content of a sweep's file."""
    public = config.public()
    found = _values(public) | _values(public.task) | _values(public.settings)
    start = {"init_from": public.init_from.location} if public.init_from else {}
    names = ("space", *_values(public.task), *_values(public.settings), *_values(public))
    left_out = {"task", "settings", *_PLACES, *(("sampler",) if config.settings.grid else ())}
    kept = {name: found[name] for name in names if name not in left_out} | start
    named = {
        option(name).removeprefix("--"): json.loads(json.dumps(value))
        for name, value in kept.items()
        if value or (value == 0 and value is not False)
    }
    return _HEADER + yaml.safe_dump(named, sort_keys=False, allow_unicode=True, width=100)


def _texts(path: str, key: str, value: Any) -> Iterator[str | None]:
    """Yield the value of each use of an option; None for a flag."""
    match value:
        case "" | "null" | "false":
            return
        case "true":
            yield None
        case {}:
            for field, inner in value.items():
                parts = ":" if key == "range" else ""
                yield f"{field}={_joined(path, key, inner, parts)}"
        case [*parts] if key in _REPEATED:
            yield from (_joined(path, key, part) for part in parts)
        case [*_] if key == "dataset":  # a path with commas is recognised, as on a command line
            yield _joined(path, key, value, ",")
        case [*_] if key.replace("-", "_") == "class_names":
            yield json.dumps(value)
        case [{}, *_] if all(isinstance(row, dict) for row in value):  # configurations
            rows = [{f: read_value(str(text)) for f, text in row.items()} for row in value]
            yield json.dumps(rows)
        case _:
            yield _joined(path, key, value)


def _values(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _joined(path: str, key: str, value: Any, separator: str = "") -> str:
    """Return a value as it is typed: the parts of a list are separated by commas, or by | if a part
    contains a comma, unless a separator is given."""
    if isinstance(value, list):
        parts = [_joined(path, key, part) for part in value]
        usual = "|" if any("," in part for part in parts) else ","
        return (separator or usual).join(parts)
    if not isinstance(value, str):
        raise _invalid(path, f"has no plain value for '{key}'")
    return value


def _invalid(path: str, why: str) -> UsageError:
    return UsageError(
        [
            "A sweep's file must be YAML with the options of search.run as keys, e.g. "
            f"'space: taskres', and '{path}' {why}."
        ]
    )
