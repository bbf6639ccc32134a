"""Housekeeping of sweeps: rename, archive, delete, annotate, with a real MLflow database."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from search import Sweep, annotate, archive, delete, rename, status, sync
from search import list as listing
from search.archive import archive_problem, write_archive
from search.core.annotations import Annotations, read_annotations
from search.core.lock import SweepLock
from search.core.problems import UsageError
from search.core.relocation import begin_removal, finish_removal, move_folder
from search.core.sweep_folder import SWEEP_FILE, SweepFolder, find_sweep
from search.delete import readable_size
from search.reporting.provenance import provenance_section
from search.reporting.source import read_source
from search.tracking.mlflow_page import DESCRIPTION
from tests.search.in_mlflow import runs_of
from tests.search.made import made
from tests.servers import S3, s3_server
from tests.trainables.trials import residual_trial
from trainables.core.storage import LocalStorage, StorageError, open_storage
from trainables.trial import TaskSpec

pytestmark = pytest.mark.filterwarnings(
    # MLflow 3.17 configures its tables with an option that SQLAlchemy 2.1 has deprecated.
    "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning",
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage folder with sweep `first` of one trial, and the MLflow database that holds it."""
    storage = tmp_path_factory.mktemp("original")
    made(storage, "first", residual_trial(2), TaskSpec(("digits",), "tiny", (2,), (1,)))
    path = storage / "first" / SWEEP_FILE
    record = json.loads(path.read_text())
    record["config"]["tracking_uri"] = ""
    path.write_text(json.dumps(record))
    assert sync.main(["first", "--storage", str(storage)]) == 0
    return storage


@dataclass(frozen=True)
class World:
    """A copy of that folder, with commands."""

    storage: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.storage}/mlflow.db"

    def sweep(self, name: str = "first") -> SweepFolder:
        return find_sweep(name, str(self.storage))

    def call(self, main: Callable[[list[str]], int], *arguments: str) -> tuple[int, str]:
        """Exit code and output of a command."""
        code = main([*arguments, "--storage", str(self.storage)])
        return code, "".join(self.capsys.readouterr())

    def states(self) -> dict[str, str]:
        """Every listed sweep with its state."""
        code, out = self.call(listing.main, "--json")
        assert code == 0
        return {found["name"]: found["state"] for found in json.loads(out)["sweeps"]}

    def runs(self, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
        return list(MlflowClient(self.uri).search_runs(["1"], run_view_type=view))


@pytest.fixture
def world(
    original: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    storage = tmp_path / "sweeps"
    shutil.copytree(original, storage)
    path = storage / "first" / SWEEP_FILE
    record = json.loads(path.read_text()) | {"location": ""}  # moved, and no copy
    path.write_text(json.dumps(record))
    capsys.readouterr()
    return World(storage, capsys)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "owner" not in path.parts
    }


# --- rename --------------------------------------------------------------------------------------


def test_a_renamed_sweep_is_the_same_sweep_with_the_same_runs(world: World) -> None:
    before, trials = world.sweep().id, contents(world.storage / "first" / "trials")
    known = {run.info.run_id for run in world.runs()}
    code, out = world.call(rename.main, "first", "second")
    assert (code, out) == (0, "Renamed sweep first to second, and 2 runs in MLflow.\n")
    assert set(world.states()) == {"second"}
    found = world.sweep("second")
    assert (found.id, found.record.config.name) == (before, "second")
    assert found.owner() is None
    assert contents(world.storage / "second" / "trials") == trials
    runs = runs_of(world.uri, "second")
    assert {run.info.run_id for run in runs.values()} == known
    assert runs[""].info.run_name == "second"
    assert "search.run --resume second" in runs[""].data.tags[DESCRIPTION]
    views = MlflowClient(world.uri).get_experiment("1").tags
    names = {json.loads(v)["name"] for k, v in views.items() if "sharedViewState" in k}
    assert names == {"second", "second: complete trials"}


def test_a_name_that_is_taken_or_wrong_is_refused(world: World) -> None:
    (world.storage / "second").mkdir()
    (world.storage / "second" / "mine.txt").write_text("mine")
    before = contents(world.storage)
    for new, why in (("second", "must be free"), ("first", "must be free"), ("a/b", "letters")):
        code, out = world.call(rename.main, "first", new)
        assert code == 2
        assert why in out
        assert out.startswith("error: ")
    assert "There is no sweep 'other'" in world.call(rename.main, "other", "third")[1]
    assert contents(world.storage) == before


def test_a_rename_that_was_killed_before_mlflow_is_completed(world: World) -> None:
    sweep = world.sweep()
    sweep.claim_id()
    target = SweepFolder(LocalStorage(world.storage / "second"), str(world.storage))
    move_folder(sweep, target, "rename first second")
    assert set(runs_of(world.uri, "first")) == {"", "0"}
    assert world.call(rename.main, "first", "second")[0] == 0
    assert set(runs_of(world.uri, "second")) == {"", "0"}
    assert world.call(rename.main, "first", "second")[0] == 2  # it is done


# --- archive -------------------------------------------------------------------------------------


def test_an_archive_restores_the_sweep(world: World) -> None:
    code, out = world.call(archive.main, "first")
    assert code == 0
    assert "equal to the folder" in out
    before, identity = contents(world.storage / "first"), world.sweep().id
    code, out = world.call(archive.main, "first", "--remove")  # of the same archive
    assert code == 0
    assert "Removed" in out
    assert world.states() == {}
    assert not (world.storage / "first").exists()
    assert len(world.runs()) == 2
    with tarfile.open(world.storage / "first.tar.gz") as packed:
        packed.extractall(world.storage, filter="data")
    assert contents(world.storage / "first") == before
    assert world.sweep().claim_id() == identity


def test_an_archive_that_differs_is_not_trusted(world: World, tmp_path: Path) -> None:
    output = tmp_path / "kept.tar.gz"
    assert world.call(archive.main, "first", "--output", str(output))[0] == 0
    assert output.is_file()
    (world.storage / "first" / "mine.txt").write_text("new")
    code, out = world.call(archive.main, "first", "--output", str(output), "--remove")
    assert code == 2
    assert "it lacks 1 files, e.g. 'mine.txt'" in out
    assert (world.storage / "first" / SWEEP_FILE).exists()
    code, out = world.call(archive.main, "first", "--output", str(tmp_path / "no" / "kept.zip"))
    assert code == 2
    assert out.count("error: ") == 2


def test_how_an_archive_can_differ(tmp_path: Path) -> None:
    sweep, path = LocalStorage(tmp_path / "s"), tmp_path / "s.tar.gz"
    sweep.write("a/one.txt", b"1" * 5000)
    sweep.write("owner/claim.json", b"{}")
    write_archive(sweep, "s", path)
    assert archive_problem(sweep, "s", path) == ""
    with tarfile.open(path) as packed:
        assert packed.getnames() == ["s/a/one.txt"]
    sweep.write("a/one.txt", b"2" * 5000)
    assert "'a/one.txt' differs" in archive_problem(sweep, "s", path)
    sweep.delete("a/one.txt")
    assert "not in the folder" in archive_problem(sweep, "s", path)
    path.write_bytes(path.read_bytes()[:40])
    assert "cannot be read" in archive_problem(sweep, "s", path)


# --- delete --------------------------------------------------------------------------------------


def test_a_deletion_shows_what_goes_and_asks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for answer, code, says in (
        ("n\n", 1, "Nothing was deleted"),
        ("", 2, "Use --yes"),
        ("y\n", 0, "Deleted sweep first."),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        assert (world.storage / "first" / SWEEP_FILE).exists()
        found, out = world.call(delete.main, "first")
        assert found == code
        assert says in out
        assert "Sweep first: 1 trial, " in out
        assert f"MLflow: 2 runs at {world.uri}" in out
    assert not (world.storage / "first").exists()
    assert world.runs() == []
    assert len(world.runs(ViewType.DELETED_ONLY)) == 2
    assert "2 runs in the trash until `mlflow gc`" in out
    tags = MlflowClient(world.uri).get_experiment("1").tags
    assert not [name for name in tags if "sharedViewState" in name]


def test_runs_can_be_kept(world: World) -> None:
    assert world.call(delete.main, "first", "--yes", "--keep-runs")[0] == 0
    assert world.states() == {}
    assert len(world.runs()) == 2


def test_a_sweep_that_a_driver_runs_is_refused(world: World) -> None:
    before = contents(world.storage / "first")
    with SweepLock(world.sweep().files):
        for main, more in (
            (delete.main, ["--yes"]),
            (archive.main, ["--remove"]),
            (rename.main, ["second"]),
        ):
            code, out = world.call(main, "first", *more)
            assert code == 2
            assert "is being run already by" in out
    assert contents(world.storage / "first") == before


def test_a_copy_does_not_delete_the_runs_of_its_original(world: World) -> None:
    world.sweep().claim_id()
    shutil.copytree(world.storage / "first", world.storage / "copy")
    code, out = world.call(delete.main, "copy", "--yes")
    assert code == 0
    assert "MLflow" not in out
    assert len(world.runs()) == 2


def test_a_deletion_that_was_killed_looks_unfinished_and_is_completed(world: World) -> None:
    sweep = world.sweep()
    begin_removal(sweep, "delete first")
    sweep.files.delete("trials/000000/result.json")
    assert world.states() == {"first": "unreadable"}
    code, out = world.call(status.main, "first")
    assert code == 2
    assert "partly removed or renamed" in out
    assert "python -m search.delete first" in out
    for main, more in ((archive.main, ["--remove"]), (rename.main, ["second"])):
        assert world.call(main, "first", *more)[0] == 2
    sweep.files.child("trials").remove()
    assert world.states() == {"first": "unreadable"}
    assert world.call(delete.main, "first", "--yes")[0] == 0
    assert world.states() == {}
    assert world.runs() == []


def test_an_archive_whose_removal_was_killed_is_completed(world: World) -> None:
    assert world.call(archive.main, "first")[0] == 0
    begin_removal(world.sweep(), "archive first --remove")
    assert world.call(archive.main, "first")[0] == 2
    assert world.call(archive.main, "first", "--remove")[0] == 0
    assert world.states() == {}


def test_mlflow_must_be_reachable_or_left_alone(world: World) -> None:
    (world.storage / "mlflow.db").write_text("no database")
    code, out = world.call(delete.main, "first", "--yes")
    assert code == 2
    assert "--keep-runs" in out
    assert world.states() == {"first": "interrupted"}
    code, out = world.call(rename.main, "first", "second")
    assert code == 1
    assert "run the same command again" in out
    assert world.states() == {"second": "interrupted"}


def test_a_damaged_sweep_can_be_deleted(world: World) -> None:
    (world.storage / "first" / SWEEP_FILE).write_text("{")
    code, out = world.call(delete.main, "first", "--yes")
    assert code == 2
    assert "--keep-runs" in out
    assert world.call(delete.main, "first", "--yes", "--keep-runs")[0] == 0
    assert world.states() == {}


def test_a_size_in_words() -> None:
    assert [readable_size(n) for n in (0, 999, 1500, 2_500_000)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.5 MB",
    ]


# --- a bucket ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


def in_bucket(world: World, s3: S3, place: str) -> str:
    """Copy the sweep into a bucket, tracked nowhere; return the storage."""
    location = s3.location(place)
    target = open_storage(location).child("first")
    for name, data in contents(world.storage / "first").items():
        target.write(name, data.replace(b'"tracking_uri": ""', b'"tracking_uri": "none"'))
    return location


def test_a_sweep_in_a_bucket(
    world: World, s3: S3, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    storage = in_bucket(world, s3, "whole")
    place, packed = ["--storage", storage], str(tmp_path / "kept.tgz")
    before = find_sweep("first", storage).id
    assert rename.main(["first", "second", *place]) == 0
    names = set(contents(world.storage / "first")) | {"sweep.yaml"}
    found = find_sweep("second", storage)
    assert (found.id, set(found.files.files())) == (before, names)
    assert open_storage(storage).child("first").files() == []
    assert archive.main(["second", "--output", packed, *place]) == 0
    assert archive.main(["second", *place]) == 0
    assert open_storage(storage).files().count("second.tar.gz") == 1
    assert delete.main(["second", "--yes", *place]) == 0
    capsys.readouterr()
    assert listing.main(["--json", *place]) == 0
    assert json.loads(capsys.readouterr().out)["sweeps"] == []
    assert open_storage(storage).files() == ["second.tar.gz"]


@pytest.mark.parametrize("killed_at", ["copy", "mark", "removal"])
def test_a_rename_in_a_bucket_that_was_killed_is_completed(
    world: World, s3: S3, capsys: pytest.CaptureFixture[str], killed_at: str
) -> None:
    storage, command = in_bucket(world, s3, killed_at), "rename first second"
    sweep = find_sweep("first", storage)
    target = SweepFolder(open_storage(storage).child("second"), storage)
    sweep.claim_id()
    record, names = sweep.record, set(sweep.files.files())
    target.mark_unfinished(record, command)
    target.files.write("trials/000000/result.json", b"an older copy")
    whole = {"first"}
    if killed_at != "copy":
        for name in names - {SWEEP_FILE}:
            target.files.write(name, sweep.files.read(name))
        sweep.mark_unfinished(record, command)
        whole = set()
    if killed_at == "removal":
        target.write_record(record)
        sweep.files.child("trials").remove()
        whole = {"second"}
    capsys.readouterr()
    assert listing.main(["--json", "--storage", storage]) == 0
    listed = json.loads(capsys.readouterr().out)["sweeps"]
    assert {s["name"] for s in listed if s["state"] != "unreadable"} == whole
    assert rename.main(["first", "second", "--storage", storage]) == 0
    assert set(find_sweep("second", storage).files.files()) == names
    assert find_sweep("second", storage).results().keys() == {0}
    assert open_storage(storage).child("first").files() == []


def test_only_a_marked_sweep_is_missing_its_record(world: World) -> None:
    begin_removal(world.sweep(), "delete first")
    with pytest.raises(UsageError, match="partly removed"):
        world.sweep().claim_id()
    finish_removal(world.sweep())
    with pytest.raises(UsageError, match="There is no sweep"):
        world.sweep()


def test_a_target_with_files_is_not_overwritten(world: World) -> None:
    (world.storage / "second").mkdir()
    (world.storage / "second" / "mine.txt").write_text("mine")
    target = SweepFolder(LocalStorage(world.storage / "second"), str(world.storage))
    with pytest.raises(StorageError, match="not empty"):
        move_folder(world.sweep(), target, "rename first second")


# --- annotate ------------------------------------------------------------------------------------


def test_a_note_and_tags_are_shown_and_sent(world: World) -> None:
    code, out = world.call(
        annotate.main, "first", "--note", "A **good** one", "--tag", "team=vision", "--tag", "n=1"
    )
    assert code == 0
    assert out == "note: A **good** one\ntags: n=1, team=vision\n"
    tags = runs_of(world.uri, "first")[""].data.tags
    assert (tags["team"], tags["n"]) == ("vision", "1")
    assert tags[DESCRIPTION].startswith("A **good** one\n\ntaskres on digits")
    assert "team=vision" in world.call(status.main, "first")[1]
    told = json.loads(world.call(status.main, "first", "--json")[1])
    assert (told["note"], told["tags"]) == ("A **good** one", {"n": "1", "team": "vision"})
    section = provenance_section(read_source("first", str(world.storage)))
    assert ("tags", "n=1, team=vision") in section.tables[0].rows
    assert world.call(annotate.main, "first")[1] == out

    code, out = world.call(annotate.main, "first", "--note", "", "--remove-tag", "n")
    assert (code, out) == (0, "note: none\ntags: team=vision\n")
    tags = runs_of(world.uri, "first")[""].data.tags
    assert "n" not in tags
    assert tags[DESCRIPTION].startswith("taskres on digits")


def test_mlflow_receives_annotations_after_an_outage(world: World) -> None:
    assert world.call(annotate.main, "first", "--tag", "old=1", "--tag", "again=1")[0] == 0
    database = world.storage / "mlflow.db"
    whole = database.read_bytes()
    database.write_text("no database")
    code, out = world.call(
        *(annotate.main, "first", "--note", "kept", "--tag", "team=vision"),
        *("--remove-tag", "old", "--remove-tag", "again"),
    )
    assert code == 1
    assert "run the same command again" in out
    assert world.call(annotate.main, "first", "--tag", "again=2")[0] == 1
    database.write_bytes(whole)
    assert world.call(sync.main, "first")[0] == 0
    tags = runs_of(world.uri, "first")[""].data.tags
    assert (tags["team"], tags["again"]) == ("vision", "2")
    assert "old" not in tags
    assert tags[DESCRIPTION].startswith("kept\n\n")


def test_the_same_from_python(world: World, tmp_path: Path) -> None:
    sweep = Sweep.open("first", str(world.storage))
    found = sweep.annotate(note="mine", tags={"team": "vision"})
    assert found == sweep.annotations == Annotations("mine", {"team": "vision"})
    assert runs_of(world.uri, "first")[""].data.tags["team"] == "vision"
    sweep.annotate(remove_tags=["team"])
    assert "team" not in runs_of(world.uri, "first")[""].data.tags
    with pytest.raises(UsageError, match="key of a tag"):
        sweep.annotate(tags={"search.id": "x"})

    sweep.rename("second")
    assert (sweep.name, sweep.folder.name, set(world.states())) == ("second", "second", {"second"})
    packed = sweep.archive(tmp_path / "packed.tar.gz")
    assert archive_problem(sweep.folder.files, "second", Path(packed)) == ""
    with pytest.raises(UsageError, match=r"must end in \.tar\.gz"):
        sweep.archive(tmp_path / "packed.zip")
    sweep.delete()
    assert world.states() == {}
    assert (len(world.runs()), len(world.runs(ViewType.DELETED_ONLY))) == (0, 2)


def test_tags_that_cannot_be_kept_are_refused_all_at_once(world: World) -> None:
    code, out = world.call(
        *(annotate.main, "first", "--tag", "search.id=x", "--tag", f"long={'x' * 6000}"),
        *("--note", "y" * 6000, "--remove-tag", "mlflow.runName"),
    )
    assert code == 2
    assert out.count("error: ") == 4
    assert "must be KEY=VALUE" in world.call(annotate.main, "first", "--tag", "team")[1]
    assert read_annotations(world.sweep().files) == Annotations()


def test_a_damaged_file_of_annotations_is_ignored(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    (world.storage / "first" / "annotations.json").write_text("{")
    assert read_annotations(world.sweep().files) == Annotations()
    assert "annotations.json" in caplog.text
    assert world.call(status.main, "first")[0] == 0
