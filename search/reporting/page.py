"""Writes the report: one self-contained HTML page, tables and figures as files, all trials.

The page makes no network requests: Plotly is part of it, and its policy (CSP) forbids them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from search.core.results import counted
from search.core.shown import described
from search.reporting.accuracy import accuracy_section, comparison_section
from search.reporting.document import Figure, Section
from search.reporting.files import INPUTS, PAGE, report_folder, report_inputs
from search.reporting.learned import mask_section, residual_section
from search.reporting.parameters import parameters_section, tradeoff_section
from search.reporting.predictions import prediction_sections
from search.reporting.provenance import provenance_section
from search.reporting.source import Source
from search.reporting.trials import history_figure, search_section, trials_parquet, trials_table
from search.reporting.winner import headlines, winner_section
from trainables.core.text import printable

_OWN = ("tables/", "figures/")  # folders that only the report writes to; users may add others
_POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-eval' {}; "  # Plotly compiles programs for parallel coordinates
    "base-uri 'none'; form-action 'none'"
)


def sections_of(source: Source, quick: bool = False) -> list[Section]:
    """Build the sections that apply to this sweep, in page order; `quick` omits what takes
    seconds."""
    found = [
        winner_section(source),
        search_section(source),
        Section("trials", "Trials", tables=(trials_table(source),)),
        parameters_section(source, quick),
        accuracy_section([source]),
        *prediction_sections(source),
        tradeoff_section(source),
        residual_section([source]),
        mask_section([source]),
        provenance_section(source),
    ]
    return [section for section in found if section is not None]


def comparison_of(sources: Sequence[Source]) -> list[Section]:
    """Build the sections that compare sweeps, in page order."""
    found = [
        comparison_section(sources),
        accuracy_section(sources),
        residual_section(sources),
        mask_section(sources),
        *(provenance_section(source, several=True) for source in sources),
    ]
    return [section for section in found if section is not None]


def write_report(source: Source, others: Sequence[Source] = ()) -> list[str]:
    """Write the report to `report_folder` and return the names of its files.

    The page is written after its tables and figures, so that they are never older than the page.
    Raises `StorageError`.
    """
    names = [other.name for other in others]
    folder = source.sweep.child(report_folder(names))
    content = {} if others else {"trials.parquet": trials_parquet(source)}
    sections = comparison_of((source, *others)) if others else sections_of(source)
    first = None if others else history_figure(source)
    for section in sections:
        for table in (*section.tables, *section.files):
            content[f"tables/{table.name}.md"] = table.markdown().encode()
            content[f"tables/{table.name}.tex"] = table.latex().encode()
            content[f"tables/{table.name}.csv"] = table.csv().encode()
    for figure in _figures(sections, first):
        content[f"figures/{figure.name}.json"] = json.dumps(figure.to_dict()).encode()
    content[PAGE] = render((source, *others), sections, first).encode()
    earlier = {name for name in folder.files() if name.startswith(_OWN)}
    for name, data in content.items():
        folder.write(name, data)
    for name in earlier - set(content):  # left by an earlier report
        folder.delete(name)
    inputs = report_inputs(source.results, source.evaluation, names)
    folder.write(INPUTS, f"{inputs}\n".encode())  # last: marks the report as complete
    return [*content, INPUTS]


def render(
    sources: Sequence[Source], sections: Sequence[Section], first: Figure | None = None
) -> str:
    """Render the sections as one HTML page, with all text escaped.

    With a first figure, the page begins with it and the headline numbers of the only sweep.
    """
    content = _content(sources, sections, first, f"Report written {_now()}.")
    return _page(content, _plots(sections, first))


def render_sections(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Render sections that are not about a sweep as one HTML page."""
    content = {
        "links": (),
        "title": title,
        "subtitle": f"{subtitle} Written {_now()}.",
        "notices": (),
        "headlines": [],
        "first": None,
        "sections": sections,
    }
    return _page(content, _plots(sections, None))


def _page(content: Mapping[str, Any], plots: Mapping[str, Any]) -> str:
    """A self-contained page."""
    scripts = [get_plotlyjs(), resource("page.js")]
    hashes = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    return _fill(
        **content,
        figures=Markup(_embedded(plots)),
        style=Markup(resource("page.css")),
        scripts=[Markup(script) for script in scripts],
        policy=Markup(_POLICY.format(" ".join(f"'sha256-{one}'" for one in hashes))),
    )


def live_page(title: str) -> str:
    """Render the page that shows what `live_content` returns, and asks for it again and again."""
    policy = _POLICY.format("'self'") + "; connect-src 'self'"
    style = Markup(resource("page.css"))
    return _fill(live=True, title=title, style=style, policy=Markup(policy))


def live_content(sources: Sequence[Source], links: Sequence[tuple[str, str]]) -> bytes:
    """Return the content of the live page of one sweep, or of several, as JSON: `html`, `figures`.

    `links` are names and addresses of other pages.
    """
    one = len(sources) == 1
    quick = sources[0].running is not None
    sections = sections_of(sources[0], quick) if one else comparison_of(sources)
    first = history_figure(sources[0]) if one else None
    content = _content(sources, sections, first, f"As of {_now()}.")
    html = _fill(fragment=True, **content | {"links": links})
    return _embedded({"html": html, "figures": _plots(sections, first)}).encode()


def _content(
    sources: Sequence[Source], sections: Sequence[Section], first: Figure | None, written: str
) -> dict[str, Any]:
    source, *others = sources
    about = f"{source.config.space} on {described(source.config.task)}."
    versus = ", ".join(other.name for other in others)
    return {
        "links": (),
        "title": f"Sweeps {source.name}, {versus}" if others else f"Sweep {source.name}",
        "subtitle": f"{f'A comparison of {len(sources)} sweeps.' if others else about} {written}",
        "notices": notices(sources),
        "headlines": headlines(source) if first else [],
        "first": first,
        "sections": sections,
    }


def _fill(live: bool = False, fragment: bool = False, **values: Any) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=_finalize
    )
    template = environment.from_string(resource("page.html.jinja"))
    return template.render(live=live, fragment=fragment, **values)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


def notices(sources: Sequence[Source]) -> list[str]:
    """Return notices of unfinished sweeps, whose results are provisional, and of evaluations that
    cannot be read."""
    found = []
    for source in sources:
        name = "The sweep" if len(sources) == 1 else f"The sweep '{source.name}'"
        ended = counted(source.results.values(), source.config.trials)
        done = f"{ended} of {source.config.trials} trials have finished."
        if source.running is not None:
            found.append(f"{name} is still running ({source.running}): {done}")
        elif ended < source.config.trials:
            found.append(f"{name} is unfinished: {done}")
        if source.damaged:
            found.append(f"{name} is shown without test results. {source.unjudged}")
    return found


def _figures(sections: Sequence[Section], first: Figure | None) -> list[Figure]:
    return [*([first] if first else []), *(f for section in sections for f in section.figures)]


def _plots(sections: Sequence[Section], first: Figure | None) -> dict[str, Any]:
    return {figure.name: figure.to_dict() for figure in _figures(sections, first)}


def _embedded(value: object) -> str:
    """Encode as JSON that no HTML parser takes for a tag."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def resource(name: str) -> str:
    """Return a file of this folder."""
    return files("search.reporting").joinpath(name).read_text(encoding="utf-8")


def _finalize(value: object) -> object:
    return printable(value) if type(value) is str else value  # markup is already escaped
