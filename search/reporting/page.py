"""Renders the report as one self-contained HTML file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from search.core.results import counted
from search.core.task import described
from search.reporting.section import Section
from search.reporting.source import Source
from trainables.core.text import printable


def render(source: Source, others: Sequence[Source], sections: Sequence[Section]) -> str:
    """Render the sections as one HTML page, with all text escaped."""
    template = files("search.reporting").joinpath("page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=_finalize
    )
    against = f", compared with {', '.join(o.name for o in others)}" if others else ""
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return environment.from_string(template).render(
        title=f"Sweep {source.name}",
        subtitle=f"{source.config.space} on {described(source.config.task)}{against}. "
        f"Report written {made}.",
        notices=notices((source, *others)),
        sections=sections,
    )


def _finalize(value: object) -> object:
    return printable(value) if type(value) is str else value  # markup is already escaped


def notices(sources: Sequence[Source]) -> list[str]:
    """Return a notice for each unfinished sweep, whose results are provisional."""
    found = []
    for source in sources:
        ended = counted(source.results.values())
        name = "The sweep" if len(sources) == 1 else f"The sweep '{source.name}'"
        if source.running is not None:
            found.append(
                f"{name} is still running ({source.running}): {ended} of "
                f"{source.config.trials} trials have finished."
            )
        elif ended < source.config.trials:
            found.append(
                f"{name} is unfinished: {ended} of {source.config.trials} trials have finished."
            )
    return found
