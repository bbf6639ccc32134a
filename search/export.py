"""`python -m search.export`: what a sweep has learned, as something that others can load."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from search.config import SweepConfig
from search.exports.card import CARD, card
from search.exports.chosen import BEST, Chosen, choose
from search.exports.formats import FORMATS, unfit
from search.exports.model import Model, open_model
from search.exports.verify import VerificationError, Verified, verify
from search.options import Parser
from search.preflight import load_record
from search.problems import UsageError
from trainables.storage import StorageError, open_storage
from trainables.suggest import did_you_mean

_INTRODUCTION = """\
Write what a sweep has learned as something that others can load.

The written model is loaded in a process of its own and asked about the trial's validation images.
It is announced only where it says what the trial says."""


def build_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = Parser(
        prog="python -m search.export",
        description=_INTRODUCTION,
        epilog="formats:\n" + "\n".join(f"  {n:9} {f.help}" for n, f in FORMATS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="name of the sweep")
    parser.add_argument(
        "--trial",
        default=BEST,
        metavar="best|N",
        help="best: the winner, re-trained on a fresh draw, as it was judged on the test split; N: "
        "trial N as the search trained it (default: %(default)s)",
    )
    parser.add_argument(
        "--format", default="artifact", metavar="FORMAT", help="see below (default: %(default)s)"
    )
    parser.add_argument(
        "--cell",
        default="",
        metavar="LABEL",
        help="which of several draws, data sets or shots, e.g. seed2 (default: the first)",
    )
    parser.add_argument(
        "--output",
        default="",
        metavar="FOLDER",
        help="folder to make (default: NAME-TRIAL-FORMAT in the current one)",
    )
    parser.add_argument(
        "--storage",
        default=SweepConfig().storage,
        metavar="FOLDER",
        help="where sweeps are kept: a folder or a bucket's URI (default: %(default)s)",
    )
    parser.add_argument(
        "--data",
        default=os.environ.get("FEWSHOT_DATA", ""),
        metavar="FOLDER",
        help="where the field's data sets are (default: FEWSHOT_DATA where it is set, else the "
        "sweep's own)",
    )
    return parser


def export(options: argparse.Namespace) -> tuple[Chosen, Path, Verified]:
    """Choose, open, write, verify, announce. Raises `UsageError`, `StorageError`,
    `VerificationError`, `OSError`."""
    kind = options.format
    if kind not in FORMATS:
        raise UsageError([did_you_mean("format", kind, FORMATS)])
    output = Path(options.output or f"{options.name}-{_title(options)}-{kind}")
    output = output.expanduser().absolute()
    if os.path.lexists(output):
        raise UsageError(
            [f"--output must not exist yet, and '{output}' does: remove it, or name another."]
        )
    sweep = open_storage(options.storage).child(options.name)
    record = load_record(sweep)
    config = replace(SweepConfig.from_dict(record["config"]), name=options.name)
    chosen = choose(sweep, record, config, options.trial, options.cell)
    model = open_model(chosen, options.data or config.data)
    if why := unfit(model, kind):
        raise UsageError([why])
    return chosen, output, _write(model, kind, output)


def _title(options: argparse.Namespace) -> str:
    trial = options.trial if options.trial == BEST else f"trial{options.trial}"
    return f"{trial}-{options.cell}" if options.cell else str(trial)


def _write(model: Model, kind: str, output: Path) -> Verified:
    """Under another name in the same folder, until it is verified."""
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        folder = beside / "export"
        folder.mkdir()
        record = card(model, kind)
        FORMATS[kind].write(model, record, folder, beside)
        verified = verify(model, kind, folder, beside)
        whole = record | {"verified": asdict(verified)}
        (folder / CARD).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        folder.rename(output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return verified


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 when the export is there and verified, 2 for a mistake in what was asked for, 1 where
    it could not be written or does not say what the trial says."""
    console, complain = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True)

    def error(problem: str) -> None:
        complain.print(f"error: {problem}", markup=False, highlight=False)

    try:
        chosen, output, verified = export(build_parser().parse_args(arguments))
    except UsageError as found:
        for problem in found.problems:
            error(problem)
        return 2
    except StorageError as found:
        error(str(found))
        return 2
    except VerificationError as found:
        error(f"The export was not kept, since it does not say what the trial says: {found}.")
        return 1
    except OSError as found:
        error(f"The export could not be written: {found}. Nothing is left of it.")
        return 1
    except KeyboardInterrupt:
        complain.print("Stopped. Nothing is left of the export.")
        return 130
    cell = chosen.cell
    console.print(
        f"Trial {chosen.result.number} of {chosen.config.name} ({chosen.trial.method}, "
        f"{cell.dataset}, {cell.shots} shots, seed {cell.seed}): {output}\n"
        f"Loaded in a process of its own, it says the same about {verified.images} validation "
        f"images: largest difference of logits {verified.largest:.1e}, allowed "
        f"{verified.tolerance:g}.",
        markup=False,
        highlight=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
