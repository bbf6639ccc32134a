"""Requests: a table or a part of it, with data, backbones and draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from search.core.problems import UsageError
from search.papers.schema import Paper, Row, Table, papers
from trainables.core.text import did_you_mean
from trainables.trial import TrialConfig

EMBEDDED = "tiny"
"""Name of the embedded model."""
_DIGITS = ("digits", "digits-rotated")
_MINIATURE_EPOCHS = 2


@dataclass(frozen=True)
class Request:
    """A table or a part of it, with data, backbones and draws."""

    paper: Paper
    """The paper."""
    name: str
    """Names of paper and table, e.g. `rmt/table-4`."""
    table: Table
    """The table, with the chosen data sets, shots and draws only."""
    whole: Table
    """The whole table of the paper."""
    data: str = ""
    """Folder of the field's data sets."""
    bundles: str = ""
    """Folder of feature bundles, in place of images; empty for images."""
    backbones: tuple[str, ...] = ()
    """Specifications of backbones that replace the table's; empty for the published weights."""
    draws: str = "seeded-capped"
    """Rule of the few-shot draws."""
    embedded: bool = False
    """Whether to run the miniature on the embedded model."""
    skip_unreadable: bool = False
    """Whether images that cannot be read are left out."""

    def config(self, config: TrialConfig) -> TrialConfig:
        """Return the configuration that is trained; a miniature has few epochs.

        The learning rate bounds Adam's steps. It is raised in proportion, so that masks flip as in
        a whole training. Other optimisers might diverge.
        """
        if not self.embedded:
            return config
        before, optim = self.config(config.before) if config.before else None, config.optim
        epochs = min(optim.epochs, _MINIATURE_EPOCHS)
        longer = optim.epochs / epochs if optim.optimiser == "adam" else 1.0
        optim = replace(optim, epochs=epochs, lr=optim.lr * longer)
        return replace(config, before=before, optim=optim)


def find_table(name: str) -> tuple[Paper, Table]:
    """Return the table `PAPER/TABLE`; raises `UsageError`."""
    known = {f"{key}/{table}": paper for key, paper in papers().items() for table in paper.tables}
    if name not in known:
        raise UsageError([did_you_mean("table", name, known)])
    return known[name], known[name].tables[name.partition("/")[2]]


def narrowed(
    table: Table, only: Sequence[str], shots: Sequence[int], seeds: Sequence[int]
) -> Table:
    """Return the table with these data sets, shots and seeds only; an empty sequence keeps all. The
    source of a domain generalisation stays. Raises `UsageError`."""
    problems = []
    named: tuple[tuple[str, Sequence[object], Sequence[object]], ...] = (
        ("--only", only, table.datasets),
        ("--shots", shots, table.shots),
    )
    for option, given, known in named:
        for value in given:
            if value not in known:
                listed = ", ".join(map(str, known))
                problems.append(f"{option} must be one of the table's ({listed}), got {value}.")
    if len(set(seeds)) < len(seeds) or any(seed < 0 for seed in seeds):
        problems.append(
            "--seeds must be different numbers of at least 0, got "
            f"{','.join(map(str, seeds))}. Use e.g. --seeds 1,2,3."
        )
    if problems:
        raise UsageError(problems)
    source = () if table.protocol in ("few-shot", "base-to-new") else table.datasets[:1]
    datasets = tuple(d for d in table.datasets if not only or d in only or d in source)
    kept_shots = tuple(n for n in table.shots if not shots or n in shots)
    rows = tuple(row for row in (_narrowed_row(r, datasets, kept_shots) for r in table.rows) if row)
    if not any(row.method for row in rows):
        raise UsageError(["--only and --shots must leave something to train. Name others."])
    seeds = tuple(seeds) or table.seeds
    return replace(table, datasets=datasets, shots=kept_shots, seeds=seeds, rows=rows)


def _narrowed_row(row: Row, datasets: Sequence[str], shots: Sequence[int]) -> Row | None:
    """Return the row with what remains of it, or None. An empty field means everything."""
    own_datasets = tuple(d for d in row.datasets if d in datasets)
    own_shots = tuple(n for n in row.shots if n in shots)
    if (row.datasets and not own_datasets) or (row.shots and not own_shots):
        return None
    published = tuple(p for p in row.published if p.shots is None or p.shots in shots)
    return replace(row, datasets=own_datasets, shots=own_shots, published=published)


def miniature(table: Table) -> Table:
    """Return the table for the embedded model, with two draws. The digits replace all data sets,
    and rotated digits the shifts. Published numbers are removed, because they are not
    comparable."""
    alone = table.protocol in ("few-shot", "base-to-new")
    rows = tuple(replace(row, backbones=(), datasets=(), published=()) for row in table.rows)
    return replace(
        table,
        backbones=(EMBEDDED,),
        datasets=_DIGITS[:1] if alone and "mask-iou" not in table.measures else _DIGITS,
        seeds=table.seeds[:2],
        rows=rows,
    )
