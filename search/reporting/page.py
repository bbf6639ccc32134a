"""The page: one HTML file that asks nobody for anything."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from search.core.task import described
from search.reporting.section import Section
from search.reporting.source import Source
from trainables.core.text import printable


def render(source: Source, others: Sequence[Source], sections: Sequence[Section]) -> str:
    """Sections as one page; every text is escaped."""
    template = files("search.reporting").joinpath("page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=_finalize
    )
    against = f", beside {', '.join(o.name for o in others)}" if others else ""
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return environment.from_string(template).render(
        title=f"Sweep {source.name}",
        subtitle=f"{source.config.space} on {described(source.config.task)}{against}. "
        f"Report of {made}.",
        notices=notices((source, *others)),
        sections=sections,
    )


def _finalize(value: object) -> object:
    return printable(value) if type(value) is str else value  # markup is safe already


def notices(sources: Sequence[Source]) -> list[str]:
    """What makes the report provisional, sweep by sweep."""
    found = []
    for source in sources:
        name = "The sweep" if len(sources) == 1 else f"The sweep '{source.name}'"
        if source.running is not None:
            found.append(
                f"{name} is running ({source.running}): this is how it stands with "
                f"{len(source.results)} of {source.config.trials} trials ended."
            )
        elif len(source.results) < source.config.trials:
            found.append(
                f"{name} is not at its end: {len(source.results)} of {source.config.trials} trials "
                "have ended."
            )
    return found
