"""Chooses the backbones of a reproduction and compares them with the paper's."""

from __future__ import annotations

from collections.abc import Sequence

from trainables.core.files import expanded

_OPENAI = "openai"


def chosen(table: Sequence[str], given: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the specification of each backbone that is used, and the reasons why others are not.

    A given backbone replaces the table's backbone of the same architecture. If the table has none
    of the given architectures, the given backbones replace all of the table's.
    """
    if not given:
        return {name: f"{name}:{_OPENAI}" for name in table}, {}
    by_architecture = {architecture(spec): spec for spec in given}
    found = {name: by_architecture[name] for name in table if name in by_architecture}
    if not found:
        return {spec: spec for spec in given}, {}
    return found, {name: "not among --backbone" for name in table if name not in found}


def architecture(spec: str) -> str:
    """Return the architecture in a specification, as named in the papers' tables."""
    return spec.partition(":")[0].removesuffix("-quickgelu")


def difference(name: str, spec: str) -> str:
    """Return why results with the backbone `spec` cannot be compared with those of a paper with
    `name` and OpenAI's weights; empty if they can."""
    if architecture(spec) != name:
        return f"another backbone ({spec})"
    tag, _, file = spec.partition(":")[2].partition("@")
    if tag in ("", _OPENAI) and not file:
        return ""
    if not expanded(file or tag).exists():
        return f"other weights ({tag})"
    return "" if is_openai(name, file or tag) else "weights not verified"


def is_openai(name: str, file: str) -> bool:
    """Whether a local file has the digest of OpenAI's published weights."""
    from trainables.backbones.open_clip import recognise  # takes seconds to load

    return recognise(name, expanded(file)) == _OPENAI
