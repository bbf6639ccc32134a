"""`python -m search.export`: exports a trained model."""

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

from search.core.config import SweepConfig
from search.core.model_name import model_name_problem
from search.core.problems import UsageError
from search.core.sweep_folder import find_sweep
from search.exporting.card import CARD, card
from search.exporting.formats import FORMATS, unfit
from search.exporting.model import BEST, Artifact, Model, find_artifact, open_model
from search.exporting.registry import ALIAS, Registry, RegistryError, Version
from search.exporting.verify import VerificationError, Verified, verify
from search.terminal.console import module_command, open_console
from search.terminal.exit_code import Failures, exit_code
from search.terminal.parser import Parser
from search.tracking.mlflow_reporter import open_runs
from search.tracking.uri import check_tracking_uri, uri_afterwards
from trainables.core.files import expanded, temporary_folder
from trainables.core.text import did_you_mean

_INTRODUCTION = """\
Export a model that a sweep has trained, or register it in MLflow.

The exported model is loaded in a new process and compared with the trial on validation images. It
is kept only if its predictions agree."""


def build_parser() -> Parser:
    """All options."""
    parser = Parser(
        "search.export",
        _INTRODUCTION,
        epilog="formats:\n" + "\n".join(f"  {n:9} {f.help}" for n, f in FORMATS.items()),
    )
    parser.add_argument("name", metavar="NAME", help="name of the sweep")
    parser.add_argument(
        "--format",
        default="",
        metavar="FORMAT",
        help="see below (default: artifact; with --register: mlflow)",
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
        help="register the model as a version of this registered model in MLflow, with the alias "
        f"{ALIAS}; nothing is registered twice",
    )
    parser.add_tracking_uri()
    parser.add_storage()
    parser.add_model()
    return parser


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    artifact: Artifact
    """The artifact that was exported."""
    output: Path | None
    """Folder of the export; None if it was only registered."""
    verified: Verified | None
    """The comparison with the trial; None if it was registered already."""
    version: Version | None
    """The version in MLflow's registry, if requested."""

    @property
    def source(self) -> str:
        """A short description of the artifact."""
        artifact, episode = self.artifact, self.artifact.episode
        return (
            f"Trial {artifact.result.number} of {artifact.config.name} "
            f"({artifact.trial.methods}, {episode.dataset}, {episode.shots} shots, "
            f"seed {episode.seed})"
        )


def export(options: argparse.Namespace) -> Exported:
    """Find, open, write, verify and, if requested, register a model.

    Raises `UsageError`, `StorageError`, `TrackingError`, `VerificationError`, `OSError`,
    `RegistryError`.
    """
    kind = options.format or ("artifact" if options.register is None else "mlflow")
    if kind not in FORMATS:
        raise UsageError([did_you_mean("format", kind, FORMATS)])
    if problems := _registration_problems(options, kind):
        raise UsageError(problems)
    output = Path(options.output or f"exports/{options.name}-{_title(options)}-{kind}")
    output = expanded(output).absolute()
    is_kept = bool(options.output) or options.register is None
    if is_kept and os.path.lexists(output):
        raise UsageError(
            [f"--output must not exist yet, got '{output}'. Remove it, or name another folder."]
        )
    sweep = find_sweep(options.name, options.storage)
    config, registry = sweep.config, None
    if options.register is not None:
        uri = _reachable_uri(options.tracking_uri, config)
        registry = Registry(options.register, open_runs(uri, config, sweep.id, sweep.files))
    artifact = find_artifact(sweep, options.trial, options.episode)
    if registry is not None:
        source = (config.name, sweep.id, artifact.result.number, artifact.source)
        if (version := registry.find(*source)) and not is_kept:
            return Exported(artifact, None, None, version)
    model = open_model(artifact, options.data or config.data)
    if why := unfit(model, kind):
        raise UsageError([why])
    with temporary_folder() as temporary:
        folder = output if is_kept else temporary / "export"
        verified = _write(model, kind, folder)
        exported = Exported(artifact, output if is_kept else None, verified, None)
        if registry is None:
            return exported
        written = json.loads((folder / CARD).read_text(encoding="utf-8"))
        return replace(exported, version=registry.register(folder, written))


def register_winner(config: SweepConfig, uri: str, console: Console) -> bool:
    """Register the winner of a finished sweep as a version of `config.register` in MLflow at `uri`;
    return whether it is registered. A failure is printed with the command that repeats it."""
    assert config.register is not None
    arguments = [config.name, "--register", config.register, "--storage", config.storage]
    given = [*arguments, "--tracking-uri", uri]
    given += ["--data", config.data] if config.data else []
    try:
        with console.status("Registering the winner"):
            version = export(build_parser().parse_args(given)).version
        assert version is not None
        console.print(version.announced, markup=False, highlight=False)
        return True
    except Exception as error:
        why = " ".join(error.problems) if isinstance(error, UsageError) else str(error)
        again = module_command("search.export", *arguments[:3], storage=config.storage)
        console.print(
            f"The winner was not registered: {why or type(error).__name__}. Register it later: "
            f"{again}",
            style="yellow",
            markup=False,
            highlight=False,
        )
        return False


def _registration_problems(options: argparse.Namespace, kind: str) -> list[str]:
    if options.register is None:
        if options.tracking_uri:
            return ["--tracking-uri requires --register MODEL: it names the MLflow to register in."]
        return []
    found = [problem] if (problem := model_name_problem(options.register)) else []
    if kind != "mlflow":
        found.append(f"--register requires an MLflow model, got --format {kind}. Omit --format.")
    return found


def _reachable_uri(given: str, config: SweepConfig) -> str:
    """The MLflow to register in. Raises `UsageError`, `TrackingError`; `RegistryError` if it is
    unreachable."""
    uri = uri_afterwards(given, config)
    if outage := check_tracking_uri(uri):
        raise RegistryError(outage.partition("; ")[0])
    return uri


def _title(options: argparse.Namespace) -> str:
    trial = options.trial if options.trial == BEST else f"trial{options.trial}"
    return f"{trial}-{options.episode}" if options.episode else str(trial)


def _write(model: Model, kind: str, output: Path) -> Verified:
    """Write the export under a temporary name, verify it, and rename it."""
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
    """Run; return 0 if the export is written and verified, 2 for a mistake in the request, 1 if it
    could not be written or its predictions differ."""
    failures: Failures = {
        RegistryError: (1, "The model was not registered: {}. Fix that and run it again."),
        VerificationError: (1, "The export was removed, as its predictions differ: {}."),
        OSError: (1, "The export could not be written: {}. Nothing was exported."),
    }
    nothing = "Interrupted. Nothing was exported."
    return exit_code(lambda: _run(arguments), nothing, failures)


def _run(arguments: Sequence[str] | None) -> int:
    exported = export(build_parser().parse_args(arguments))
    verified = exported.verified
    lines = [exported.source + ("" if exported.output is None else f": {exported.output}")]
    if verified is not None:
        lines.append(
            f"Verified in a new process: same predictions for {verified.images} validation "
            f"images, largest difference of logits {verified.largest:.1e} (allowed: "
            f"{verified.tolerance:g})."
        )
    if exported.version is not None:
        lines.append(exported.version.announced)
    open_console().print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
