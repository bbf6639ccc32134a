"""A winner in MLflow's registry: over a server that wants a log-in and shares no disk with us."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import _validate_model_name
from PIL import Image
from rich.console import Console

from search import predict, sync
from search.core.config import SweepConfig
from search.core.model_name import model_name_problem
from search.core.sweep_folder import SweepFolder
from search.evaluation.record import Comparison, Evaluation, Score
from search.export import main, register_winner
from search.exporting.card import described
from search.exporting.model import Model, find_artifact, open_model
from search.exporting.registry import ALIAS, Registry, RegistryError
from search.tracking.mlflow_page import columns, description
from search.tracking.mlflow_reporter import open_runs
from tests.search.in_mlflow import runs_of
from tests.search.made import made
from tests.search.tracking.test_mlflow_reporter import SECRET, server_with_a_log_in
from tests.servers import Mlflow
from trainables.core.optim import OptimConfig
from trainables.core.storage import LocalStorage
from trainables.methods.taskres import TaskResConfig
from trainables.trial import TaskSpec, TrialConfig

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings(
        "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"
    ),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

TASKRES = TrialConfig(
    "taskres",
    "search",
    TaskResConfig(residual="image"),
    OptimConfig(lr=2e-3, epochs=4, batch_size=64),
)
MODEL = "it's digits"


@dataclass(frozen=True)
class World:
    """A sweep that a server knows, and its registered model."""

    storage: Path
    server: Mlflow
    output: Path
    """The export that was registered."""

    @property
    def sweep(self) -> LocalStorage:
        return LocalStorage(self.storage / "s1")

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.server.uri)

    @property
    def registry(self) -> Registry:
        return Registry(MODEL, open_runs(self.server.uri, SweepConfig(name="s1"), "s1", self.sweep))

    @property
    def card(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.output / "card.json").read_text())
        return found

    def model(self) -> Model:
        return open_model(find_artifact(SweepFolder(self.sweep), "0", ""), "")

    def options(self, *more: str) -> list[str]:
        where = ["--storage", str(self.storage), "--tracking-uri", self.server.uri]
        return ["s1", "--trial", "0", "--register", MODEL, *where, *more]

    def versions(self) -> dict[str, str]:
        """Number -> trial."""
        found = self.client.search_model_versions(f'name = "{MODEL}"')
        return {str(version.version): version.tags["search.trial"] for version in found}

    def logged_models(self) -> list[str]:
        run = runs_of(self.server.uri)["0"]
        found = self.client.search_logged_models([run.info.experiment_id])
        return [model.model_id for model in found]

    def champion(self) -> str:
        return str(self.client.get_model_version_by_alias(MODEL, ALIAS).version)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("registry")
    patch = pytest.MonkeyPatch()
    patch.setenv("HOME", str(folder))
    patch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    patch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    made(folder, "s1", TASKRES, TaskSpec(("digits",), "tiny", (4,), (1,)))
    server = server_with_a_log_in(folder)
    server.wait()
    try:
        where = ["s1", "--storage", str(folder), "--tracking-uri", server.uri]
        world = World(folder, server, folder / "export")
        assert main(world.options("--output", str(world.output))) == 1  # its run is not there
        assert not world.output.exists()
        assert sync.main(where) == 0
        assert main(world.options("--output", str(world.output))) == 0
        yield world
    finally:
        server.kill()
        patch.undo()


def test_the_champion_reads_images_in_a_fresh_process(world: World, tmp_path: Path) -> None:
    model = world.model()
    paths = []
    for row in range(5):
        pixels = model.val_images.read(row).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{row}.png")
        paths.append(str(tmp_path / f"{row}.png"))
    code = (
        "import json, sys, mlflow\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        f"model = mlflow.pyfunc.load_model({f'models:/{MODEL}@{ALIAS}'!r})\n"
        "assert model.metadata.signature is not None\n"
        "assert model.input_example is not None\n"
        "print(json.dumps(model.predict(sys.argv[2:])['class'].to_list()))\n"
    )
    command = [sys.executable, "-I", "-c", code, world.server.uri, *paths]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = world.card["classes"]
    expected = [names[row] for row in model.logits[:5].argmax(dim=1).tolist()]
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_search_predict_classifies_with_the_champion(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = world.model()
    for row in range(3):
        pixels = model.val_images.read(row).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{row}.png")
    where = ["--tracking-uri", world.server.uri, "--storage", str(world.storage)]
    for address in (f"models:/{MODEL}@{ALIAS}", f"models:/{MODEL}/1"):
        assert predict.main([address, str(tmp_path), *where]) == 0
        found = [line.split("  ")[1].split()[0] for line in capsys.readouterr().out.splitlines()]
        rows = model.logits[:3].argmax(dim=1).tolist()
        assert found == [world.card["classes"][row] for row in rows]
    for address in (f"models:/{MODEL}@none", "models:/nothing/1", f"models:/{MODEL}"):
        assert predict.main([address, str(tmp_path), *where]) == 2
        assert "The registered model could not be opened:" in capsys.readouterr().err


def test_a_version_says_what_it_is(world: World) -> None:
    version = world.client.get_model_version(MODEL, "1")
    run = runs_of(world.server.uri)["0"]
    assert version.run_id == run.info.run_id
    assert {k: v for k, v in version.tags.items() if k.startswith("search.")} == {
        "search.sweep": "s1",
        "search.id": "s1",
        "search.trial": "0",
        "search.file": "trials/000000/artifact.safetensors",
    }
    assert version.description == described(world.card)
    assert version.source.startswith("mlflow-artifacts:/")
    (output,) = run.outputs.model_outputs
    model = world.client.get_logged_model(output.model_id)
    assert model.source_run_id == run.info.run_id
    assert version.source == model.artifact_location


def test_the_same_again_is_no_second_version(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    before = world.logged_models()
    assert main(world.options()) == 0
    assert f"Registered already as version 1 of {MODEL}" in capsys.readouterr().out
    assert not world.registry.register(world.output, world.card).is_new
    assert world.versions() == {"1": "0"}
    assert world.logged_models() == before


def test_another_winner_takes_the_alias_and_a_crash_between_is_mended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = world.card
    other["sweep"]["file"] = "winner/artifact-seed2.safetensors"

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt  # as near to a kill as one process comes

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "finalize_logged_model", die)
        with pytest.raises(KeyboardInterrupt):
            world.registry.register(world.output, other)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_model_version", die)
        with pytest.raises(KeyboardInterrupt):
            world.registry.register(world.output, other)
    assert world.champion() == "1"
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", die)
        with pytest.raises(KeyboardInterrupt):
            world.registry.register(world.output, other)
    count = len(world.logged_models())
    found = world.registry.register(world.output, other)
    assert (found.number, found.is_new) == ("2", False)
    assert world.champion() == "2"
    assert len(world.versions()) == 2
    assert len(world.logged_models()) == count == 2
    world.registry.register(world.output, world.card)  # the last registration wins
    assert world.champion() == "1"


def test_what_cannot_be_registered_is_told_before_any_work(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, problem in (
        (("--register", "a/b"), "must be up to 256 characters without '/' and ':'"),
        (("--format", "torch"), "requires an MLflow model, got --format torch"),
        (("--tracking-uri", "none"), "run without tracking"),
        (("--tracking-uri", "ftp://x"), "The scheme of a tracking URI must be one"),
    ):
        assert main(world.options(*more)) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert problem in said
    assert main(["s1", "--storage", str(world.storage), "--tracking-uri", "sqlite:///x"]) == 2
    assert "requires --register MODEL" in capsys.readouterr().err
    for settings, problem in (
        ({"register": "a:b"}, "got 'a:b'"),
        ({"register": "a", "tracking_uri": "none"}, "requires MLflow"),
        ({"register": "a", "per_task": True}, "Register each afterwards"),
        ({"register": "a", "task": _bundle()}, "a bundle holds only features"),
    ):
        assert any(problem in line for line in SweepConfig(**settings).problems())
    assert SweepConfig(register="digits").problems() == []


def _bundle() -> TaskSpec:
    return TaskSpec(("bundle:x.safetensors",), "bundle:x.safetensors", (1,), (1,))


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", "..a", "a/b", "a:b", "/a", "x" * 257, "a", "it's", "a b.c-d", ".a"]
)
def test_names_are_those_that_mlflow_takes(name: str) -> None:
    try:
        _validate_model_name(name)
        is_refused = len(name) > 256  # by the database
    except MlflowException:
        is_refused = True
    assert bool(model_name_problem(name)) == is_refused


def test_a_server_that_is_away_hurts_nobody(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(
        SweepFolder(world.sweep).record.config,
        name="s1",
        storage=str(world.storage),
        register="digits",
    )
    away = "http://127.0.0.1:9"
    assert not register_winner(config, away, Console(soft_wrap=True))
    said = capsys.readouterr().out
    assert "is unreachable" in said
    remedy = f"search.export s1 --register digits --storage {world.storage}"
    assert remedy in said
    assert main([*world.options(), "--tracking-uri", away]) == 1
    assert "The model was not registered: " in capsys.readouterr().err
    runs = open_runs(away, SweepConfig(name="s1"), "s1", world.sweep)
    with pytest.raises(RegistryError):
        Registry("x", runs).find("s1", "s1", 0, "f")


def test_a_password_is_not_told(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    away = "http://ada:secret@127.0.0.1:9"
    assert main([*world.options(), "--tracking-uri", away]) == 1
    assert "secret" not in capsys.readouterr().err


def test_names_in_a_description_stand_for_themselves(world: World) -> None:
    card = world.card
    card["classes"] = ["<b>|*bold*", *(f"class {n} " + "x" * 100 for n in range(999))]
    text = described(card)
    assert "&lt;b&gt;\\|\\*bold\\*" in text
    assert "and 970 more" in text
    assert len(text) <= 5000  # what MLflow's table keeps


def test_a_sweep_describes_itself() -> None:
    config = SweepConfig(name="mine", storage="/a b")
    assert "python -m search.run --resume mine --storage '/a b'" in description(config)
    scores = tuple(
        Score(label, values, "digits", 16, "digits", "test", 100)  # type: ignore[arg-type]
        for label, values in (
            ("zero-shot", (0.5, 0.5)),
            ("paper", (0.6, 0.6)),
            ("winner", (0.7, 0.8)),
        )
    )
    gain = Comparison("winner", "zero-shot", 0.25, 0.05, 30)
    found = Evaluation(3, 0.9, (2, 3), "few-shot", scores, (gain,))
    text = description(config, None, found)
    assert "| Test accuracy, zero-shot | 50.0 % |" in text
    assert "75.0 %, deviation 7.1 over fresh draws 2, 3; +25.0 ± 63.5 over zero-shot" in text
    assert "A gain over zero-shot is not certain (+25.0 points)" in text
    assert json.loads(columns({"lr": {"1", "2"}, "one": {"1"}, "seed": {"0", "1"}})) == ["lr"]
