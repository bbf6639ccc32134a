"""`python -m search.export`: what a sweep has learned, as something that others can load."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from search.core.config import SweepConfig, model_name_problem
from search.core.problems import UsageError
from search.core.sweep_folder import find_sweep
from search.exporting.card import CARD, card
from search.exporting.chosen import BEST, Chosen, choose
from search.exporting.formats import FORMATS, unfit
from search.exporting.model import Model, open_model
from search.exporting.registry import ALIAS, Registry, RegistryError, Version
from search.exporting.verify import VerificationError, Verified, verify
from search.terminal.console import module_command, open_console, print_errors
from search.terminal.parser import Parser
from search.tracking.mlflow_reporter import open_runs
from search.tracking.uri import TrackingError, check_tracking_uri, uri_afterwards
from trainables.core.storage import StorageError
from trainables.core.text import did_you_mean

_INTRODUCTION = """\
Write what a sweep has learned as something that others can load, or register it in MLflow.

The written model is loaded in a process of its own and asked about the trial's validation images.
It is announced only where it says what the trial says."""


def build_parser() -> Parser:
    """All options."""
    parser = Parser(
        "search.export",
        _INTRODUCTION,
        epilog="formats:\n" + "\n".join(f"  {n:9} {f.help}" for n, f in FORMATS.items()),
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
        "--format",
        default="",
        metavar="FORMAT",
        help="see below (default: artifact; with --register: mlflow)",
    )
    parser.add_argument(
        "--episode",
        "--cell",
        default="",
        metavar="LABEL",
        help="which of several draws, data sets or shots, e.g. seed2 (default: the first)",
    )
    parser.add_argument(
        "--output",
        default="",
        metavar="FOLDER",
        help="folder to create (default: exports/NAME-TRIAL-FORMAT; with --register, none)",
    )
    parser.add_argument(
        "--register",
        metavar="MODEL",
        help="make the model a version of this registered model in MLflow, with the alias "
        f"{ALIAS}; what is registered already is not registered again",
    )
    parser.add_argument(
        "--tracking-uri",
        default="",
        metavar="URI",
        help="MLflow, for --register: sqlite:///FILE or http://HOST:PORT (default: the sweep's "
        "own, else MLFLOW_TRACKING_URI, else a sqlite file in the storage folder)",
    )
    parser.add_storage()
    parser.add_argument(
        "--data",
        default=os.environ.get("FEWSHOT_DATA", ""),
        metavar="FOLDER",
        help="where the field's data sets are (default: FEWSHOT_DATA where it is set, else the "
        "sweep's own)",
    )
    return parser


@dataclass(frozen=True)
class Exported:
    """What an export has made."""

    chosen: Chosen
    """The artifact that was exported."""
    output: Path | None
    """Its folder; none where it was only registered."""
    verified: Verified | None
    """How it was compared with the trial; none where it was registered already."""
    version: Version | None
    """In MLflow's registry, where that was asked for."""

    @property
    def source(self) -> str:
        """Where it comes from, in a few words."""
        chosen, cell = self.chosen, self.chosen.episode
        return (
            f"Trial {chosen.result.number} of {chosen.config.name} ({chosen.trial.methods}, "
            f"{cell.dataset}, {cell.shots} shots, seed {cell.seed})"
        )


def export(options: argparse.Namespace) -> Exported:
    """Choose, open, write, verify, announce; register, where that is asked for. Raises
    `UsageError`, `StorageError`, `TrackingError`, `VerificationError`, `OSError`, `RegistryError`.
    """
    kind = options.format or ("artifact" if options.register is None else "mlflow")
    if kind not in FORMATS:
        raise UsageError([did_you_mean("format", kind, FORMATS)])
    if problems := _registration_problems(options, kind):
        raise UsageError(problems)
    output = Path(options.output or f"exports/{options.name}-{_title(options)}-{kind}")
    output = output.expanduser().absolute()
    is_kept = bool(options.output) or options.register is None
    if is_kept and os.path.lexists(output):
        raise UsageError(
            [f"--output must not exist yet, and '{output}' does: remove it, or name another."]
        )
    found = find_sweep(options.name, options.storage)
    sweep, record, config = found.files, found.record, found.config
    registry = None
    if options.register is not None:
        uri = _answering(options.tracking_uri, config)
        runs = open_runs(uri, config, record.id, sweep)
        registry = Registry(options.register, runs)
    chosen = choose(sweep, record, config, options.trial, options.episode)
    if registry is not None:
        source = (config.name, record.id, chosen.result.number, chosen.file)
        if (version := registry.find(*source)) and not is_kept:
            return Exported(chosen, None, None, version)
    model = open_model(chosen, options.data or config.data)
    if why := unfit(model, kind):
        raise UsageError([why])
    with tempfile.TemporaryDirectory(prefix="few-shot-export-") as elsewhere:
        folder = output if is_kept else Path(elsewhere) / "export"
        verified = _write(model, kind, folder)
        made = Exported(chosen, output if is_kept else None, verified, None)
        if registry is None:
            return made
        written = json.loads((folder / CARD).read_text(encoding="utf-8"))
        return replace(made, version=registry.register(folder, written))


def _registration_problems(options: argparse.Namespace, kind: str) -> list[str]:
    if options.register is None:
        if options.tracking_uri:
            return ["--tracking-uri says where to register: it goes with --register MODEL."]
        return []
    found = [problem] if (problem := model_name_problem(options.register)) else []
    if kind != "mlflow":
        found.append(f"--register takes an MLflow model, not --format {kind}: leave that away.")
    return found


def _answering(given: str, config: SweepConfig) -> str:
    """Where to register, once it answers. Raises `UsageError`, `TrackingError`, `RegistryError`."""
    uri = uri_afterwards(given, config)
    if away := check_tracking_uri(uri):
        raise RegistryError(away.partition("; ")[0])
    return uri


def _title(options: argparse.Namespace) -> str:
    trial = options.trial if options.trial == BEST else f"trial{options.trial}"
    return f"{trial}-{options.episode}" if options.episode else str(trial)


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


def register_winner(config: SweepConfig, uri: str, console: Console) -> bool:
    """Register the winner as a version of `config.register` in MLflow at `uri`; whether it is
    there. The sweep's results are safe: whatever fails here is told, with the command that does it
    later."""
    assert config.register is not None
    arguments = [config.name, "--register", config.register, "--storage", config.storage]
    try:
        given = [*arguments, "--tracking-uri", uri]
        given += ["--data", config.data] if config.data else []
        with console.status("Registering the winner"):
            version = export(build_parser().parse_args(given)).version
        assert version is not None
        console.print(version.announced, markup=False, highlight=False)
        return True
    except Exception as error:
        why = " ".join(error.problems) if isinstance(error, UsageError) else str(error)
        again = module_command("search.export", *arguments[:3], storage=config.storage)
        console.print(
            f"The winner is not registered: {why or type(error).__name__}. Later: {again}",
            style="yellow",
            markup=False,
            highlight=False,
        )
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 when the export is there and verified, 2 for a mistake in what was asked for, 1 where
    it could not be written or does not say what the trial says."""
    console = open_console()
    try:
        made = export(build_parser().parse_args(arguments))
    except UsageError as found:
        print_errors(found.problems)
        return 2
    except (StorageError, TrackingError) as found:
        print_errors([str(found)])
        return 2
    except RegistryError as found:
        print_errors([f"The model was not registered: {found}. Fix that and run it again."])
        return 1
    except VerificationError as found:
        print_errors([f"The export was removed, as its predictions differ: {found}."])
        return 1
    except OSError as found:
        print_errors([f"The export could not be written: {found}. Nothing is left of it."])
        return 1
    except KeyboardInterrupt:
        open_console(stderr=True).print("Stopped. Nothing is left of the export.")
        return 130
    verified = made.verified
    lines = [made.source + ("" if made.output is None else f": {made.output}")]
    if verified is not None:
        lines.append(
            f"Loaded in a process of its own, it says the same about {verified.images} validation "
            f"images: largest difference of logits {verified.largest:.1e}, allowed "
            f"{verified.tolerance:g}."
        )
    if made.version is not None:
        lines.append(made.version.announced)
    console.print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
