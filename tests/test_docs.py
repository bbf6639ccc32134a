"""The documentation's pages: links work, and generated pages and messages match the program."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from search import HELP

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(DOCS.rglob("*.md")),
)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub generates them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for image, text, target in LINK.findall(page.read_text(encoding="utf-8")):
        if image:
            assert len(text) > 20, f"{target} has no text for those who do not see it"
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


def test_every_page_is_linked_from_another() -> None:
    found = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for _, _, target in LINK.findall(page.read_text(encoding="utf-8"))
        if not target.startswith(("http", "#"))
    }
    assert [p.relative_to(ROOT).as_posix() for p in PAGES[1:] if p not in found] == []


def test_the_pages_of_the_commands_are_what_the_commands_say(tmp_path: Path) -> None:
    script = [sys.executable, ROOT / ".ci" / "command_pages.py", tmp_path / "a", tmp_path / "b"]
    subprocess.run(script, cwd=ROOT, check=True)
    for folder, kept in (("a", DOCS / "commands"), ("b", HELP)):
        made = {p.name: p.read_text(encoding="utf-8") for p in (tmp_path / folder).iterdir()}
        stored = {p.name: p.read_text(encoding="utf-8") for p in kept.iterdir()}
        assert made == stored, "run `python .ci/command_pages.py`"
    assert "Exit code: 0 when the sweep is complete, 2 " in (tmp_path / "a/run.md").read_text()


@pytest.mark.parametrize("command", ["search.run", "search.status", "search.export"])
def test_help_loads_nothing_heavy(command: str) -> None:
    program = f"import sys, runpy; sys.argv = ['-m', '-h']; sys.orig_argv = ['-m', '{command}']"
    script = f"""{program}
try:
    import search
except SystemExit as stop:
    assert stop.code == 0
else:
    raise AssertionError("the help was not printed")
heavy = {{"torch", "ray", "optuna", "numpy", "pyarrow"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (HELP / f"{command}.txt").read_text(encoding="utf-8")


# --- messages ------------------------------------------------------------------------------------


def _text(node: ast.expr) -> str | None:
    """A string of the source with … for inserted values; None for other expressions."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join((_text(p) or "…") if isinstance(p, ast.Constant) else "…" for p in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return (_text(left) or "…") + (_text(right) or "…")
    return None


@cache
def messages() -> tuple[str, ...]:
    """All strings of the program."""
    found = {
        text
        for package in ("search", "spaces", "trainables")
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.expr) and (text := _text(node))
    }
    return (*found, (ROOT / ".ci" / "venv").read_text(encoding="utf-8"))


def quoted() -> list[str]:
    """The messages that the documentation explains."""
    text = (ROOT / "docs" / "messages.md").read_text(encoding="utf-8")
    return re.findall(r"^\* `(.*?)`", text, re.MULTILINE)


def test_there_are_messages() -> None:
    assert len(quoted()) >= 12


@pytest.mark.parametrize("message", quoted())
def test_a_quoted_message_is_one_of_the_programs(message: str) -> None:
    """All parts between two … occur in order within one string of the source."""
    parts = [re.escape(part) for part in message.split("…") if part.strip()]
    assert any(len(part) > 12 for part in parts)
    pattern = re.compile(".*".join(parts), re.DOTALL)
    assert any(pattern.search(known) for known in messages())


def test_an_invented_message_is_none() -> None:
    assert not any("There is no sweep of that kind" in known for known in messages())
