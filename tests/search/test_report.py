"""The report of a real sweep, and of folders that cannot have one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from base64 import b64encode
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from mlflow import MlflowClient
from pyarrow import parquet
from safetensors import safe_open
from safetensors.torch import load_file

from search import export
from search.core.lock import SweepLock
from search.core.problems import UsageError
from search.driver.sweep import report_at_end
from search.evaluation.predictions import encode_predictions
from search.evaluation.statistics import indistinguishable
from search.report import main
from search.reporting.page import sections_of, write_report
from search.reporting.provenance import provenance_section
from search.reporting.source import Source, comparable, read_source, source_of
from search.reporting.winner import test_table as table_of_test
from search.reporting.winner import tie_note, winner_section
from tests.search.conftest import Sweep, environment
from trainables.core.storage import LocalStorage, open_storage

# pytest would take the function for a test
table_of_test.__test__ = False  # type: ignore[attr-defined]

OPTIONS = (
    *("--space", "taskres", "--shots", "1,2", "--seeds", "1", "--trials", "5"),
    *("--max-concurrent", "1", "--eval-seeds", "2"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A finished sweep with its report."""
    sweep = Sweep(tmp_path_factory.mktemp("report"), "done", report=True)
    run = sweep.run(*OPTIONS)
    assert run.returncode == 0, run.stderr
    assert "The report could not be written" not in run.stderr
    assert "done/report/report.html" in run.stdout
    return sweep


@pytest.fixture
def copy(finished: Sweep, tmp_path: Path) -> Sweep:
    """A copy of the finished sweep, to be damaged."""
    shutil.copytree(finished.folder, tmp_path / "done")
    return Sweep(tmp_path, "done")


class Page(HTMLParser):
    """Cells of every table by its caption, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.addresses: list[str] = []
        self.text = ""
        self._inside = ""
        self._caption = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "caption":
            self._caption = ""
        if tag == "tr":
            self.tables.setdefault(self._caption, []).append([])
        if tag in ("td", "th"):
            self.tables[self._caption][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._inside == "caption":
            self._caption += data
        if self._inside in ("td", "th"):
            self.tables[self._caption][-1][-1] += data


NAMES = {"zero-shot": "zero-shot", "paper": "the paper's setting", "winner": "the winner"}


def page(sweep: Sweep, folder: str = "report") -> Page:
    return Page((sweep.folder / folder / "report.html").read_text(encoding="utf-8"))


def values(sweep: Sweep, label: str) -> list[float]:
    """Draw by draw: the mean over shots, from the raw file."""
    scores = [s["values"] for s in sweep.evaluation()["scores"] if s["label"] == label]
    assert len(scores) == 2
    return [statistics.fmean(draw) for draw in zip(*scores, strict=True)]


def source(sweep: Sweep) -> Source:
    return source_of(LocalStorage(sweep.folder))


def test_a_sweep_ends_with_its_report(finished: Sweep) -> None:
    files = {
        p.relative_to(finished.folder / "report") for p in (finished.folder / "report").rglob("*")
    }
    names = {str(file) for file in files}
    assert {"report.html", "trials.parquet"} <= names
    assert {"figures/reliability.json", "figures/confusion.json", "tables/classes-all.csv"} <= names
    for figure in ("history", "losses", "curves", "shots-test", "slice-lr", "classes"):
        assert f"figures/{figure}.json" in names
    for ending in ("md", "tex", "csv"):
        assert f"tables/accuracy-test.{ending}" in names


# MLflow's own database code
@pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"
)
def test_mlflow_has_the_report_in_a_folder(finished: Sweep) -> None:
    client = MlflowClient(f"sqlite:///{finished.storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("few-shot-search")
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`search.role` = 'sweep'")
    top = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"evaluation.json", "report"} <= top
    below = {file.path for file in client.list_artifacts(parent.info.run_id, "report")}
    assert {"report/report.html", "report/trials.parquet", "report/figures"} <= below


def test_the_winner_s_numbers_are_those_of_the_raw_results(finished: Sweep) -> None:
    from scipy import stats

    shown = page(finished)
    table = {row[0]: row[1:] for row in shown.tables["Test accuracy (%)"][1:]}
    labels = {name: label for label, name in NAMES.items()}
    assert set(table) == set(labels)
    for name, label in labels.items():
        figure = values(finished, label)
        assert table[name][0] == f"{100 * statistics.fmean(figure):.2f}"
        # The zero-shot model is one model, whatever the draw.
        spread = "-" if label == "zero-shot" else f"{100 * statistics.stdev(figure):.2f}"
        assert table[name][1] == spread
    for column, baseline in ((2, "zero-shot"), (3, "paper")):
        pairs = zip(values(finished, "winner"), values(finished, baseline), strict=True)
        gains = [100 * (a - b) for a, b in pairs]
        mean = statistics.fmean(gains)
        half = stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains)
        gain, _, draws = table["the winner"][column].partition(", draws ")
        assert gain.startswith(f"{mean:+z.2f} (images [")
        assert draws == f"[{mean - half:+z.2f}, {mean + half:+z.2f}])"
    winner = finished.evaluation()["winner"]
    best = finished.results()[winner]
    assert f"Trial {winner} is the winner" in shown.text
    accuracy = best["metrics"]["val/accuracy"]
    assert f"validation accuracy of {100 * accuracy:.2f} %" in shown.text


def test_the_tables_over_shots_are_those_of_the_raw_results(finished: Sweep) -> None:
    rows = page(finished).tables["Test accuracy on digits (%)"]
    assert rows[0] == ["method", "numbers", "1 shot", "2 shots"]
    for score in finished.evaluation()["scores"]:
        (row,) = [row for row in rows if row[0] == NAMES[score["label"]]]
        mean, spread = statistics.fmean(score["values"]), statistics.stdev(score["values"])
        assert row[1] == "measured"
        deviation = "" if score["label"] == "zero-shot" else f" ± {100 * spread:.2f}"
        assert row[2 + (score["shots"] == 2)] == f"{100 * mean:.2f}{deviation}"
    assert not any("published" in cell for row in rows for cell in row)


def rows_of_predictions(sweep: Sweep) -> list[dict[str, Any]]:
    with pa.memory_map(str(sweep.folder / "predictions.arrow")) as file:
        return pa.ipc.open_file(file).read_all().to_pylist()  # type: ignore[no-any-return]


def draws(sweep: Sweep, label: str, shots: int) -> list[list[dict[str, Any]]]:
    """Rows of `predictions.arrow`, draw by draw."""
    rows = [r for r in rows_of_predictions(sweep) if (r["label"], r["shots"]) == (label, shots)]
    return [[r for r in rows if r["seed"] == seed] for seed in sweep.evaluation()["seeds"]]


def models_that_read(sweep: Sweep) -> list[tuple[str, int, int]]:
    """Label, shots and seed of every recorded read of the test images."""
    lines = (sweep.folder / "test_reads.jsonl").read_text().splitlines()
    models = [model for line in lines for model in json.loads(line)["judged"]]
    return [(label, shots, seed) for label, _, shots, seed in models]


def right(row: dict[str, Any]) -> bool:
    return bool(row["prediction"] == row["truth"])


def test_predictions_are_those_that_were_scored(finished: Sweep) -> None:
    for score in finished.evaluation()["scores"]:
        found = draws(finished, score["label"], score["shots"])
        assert [sum(map(right, rows)) / len(rows) for rows in found] == score["values"]
        assert [len(rows) for rows in found] == [score["images"]] * 2
        assert all(row["image"] == i for rows in found for i, row in enumerate(rows))
    evaluated = models_that_read(finished)
    assert sorted(set(evaluated)) == sorted(evaluated)  # each model read the images once


def test_what_changed_is_counted_on_the_raw_predictions(finished: Sweep) -> None:
    table = page(finished).tables["What the winner changes (test images)"][1:]
    expected = []
    for shots, words in ((1, "digits, 1 shot"), (2, "digits, 2 shots")):
        winner = draws(finished, "winner", shots)
        for label in ("zero-shot", "paper"):
            counts = {(a, b): 0 for a in (False, True) for b in (False, True)}
            for before, after in zip(draws(finished, label, shots), winner, strict=True):
                for was, now in zip(before, after, strict=True):
                    counts[right(was), right(now)] += 1
            order = [(False, True), (True, False), (True, True), (False, False)]
            cells = [f"{counts[key] / 2:.1f}" for key in order]
            expected.append([words, NAMES[label], str(len(winner[0])), *cells])
    assert table == expected


def test_classes_and_confusion_are_those_of_the_raw_predictions(finished: Sweep) -> None:
    shown = page(finished)
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    pairs = {label: Counter[tuple[int, int]]() for label in NAMES}
    for label, counter in pairs.items():
        for rows in draws(finished, label, 2):
            counter.update((row["truth"], row["prediction"]) for row in rows)
    images = Counter(row["truth"] for row in draws(finished, "winner", 2)[0])
    share = {label: {i: pairs[label][i, i] / (2 * images[i]) for i in range(10)} for label in NAMES}
    table = shown.tables["Test accuracy of each class: digits, 2 shots (%)"][1:]
    gains = []
    for row in table:
        i = names.index(row[0])
        gains.append(share["winner"][i] - share["zero-shot"][i])
        accuracies = [f"{100 * share[label][i]:.2f}" for label in NAMES]
        assert row[1:] == [str(images[i]), *accuracies, f"{100 * gains[-1]:+z.2f}"]
    assert len(table) == 10
    assert gains == sorted(gains, reverse=True)
    table = shown.tables["The winner's most frequent confusions: digits, 2 shots (images)"][1:]
    expected = sorted(
        (pair for pair, n in pairs["winner"].items() if pair[0] != pair[1] and n),
        key=lambda pair: (-pairs["winner"][pair], pair),
    )[:15]
    assert table == [
        [
            *(names[i], names[j]),
            *(f"{pairs[label][i, j] / 2:.1f}" for label in NAMES),
            f"{100 * pairs['winner'][i, j] / (2 * images[i]):.2f}",
        ]
        for i, j in expected
    ]
    whole = (finished.folder / "report/tables/classes-all.csv").read_text().splitlines()
    assert len(whole) == 1 + 2 * 10


def test_calibration_is_that_of_the_raw_predictions(finished: Sweep) -> None:
    table = page(finished).tables["Calibration (%)"][1:]
    assert len(table) == 6
    for row in table:
        shots = 1 if row[0] == "digits, 1 shot" else 2
        (label,) = [key for key, name in NAMES.items() if name == row[1]]
        errors, sure = [], []
        for rows in draws(finished, label, shots):
            error = 0.0
            for m in range(15):
                mine = [r for r in rows if m / 15 < r["confidence"] <= (m + 1) / 15]
                confidence = math.fsum(r["confidence"] for r in mine)
                error += abs(sum(map(right, mine)) - confidence) / len(rows)
            errors.append(error)
            sure.append(math.fsum(r["confidence"] for r in rows) / len(rows))
        for cell, values in ((row[3], sure), (row[4], errors)):
            mean, spread = statistics.fmean(values), statistics.stdev(values)
            assert cell == f"{100 * mean:.2f} ± {100 * spread:.2f}"


def test_pictures_are_images_that_the_two_models_differ_on(finished: Sweep) -> None:
    with pa.memory_map(str(finished.folder / "examples.arrow")) as file:
        examples = pa.ipc.open_file(file).read_all().to_pylist()
    assert 2 <= len(examples) <= 24
    seed = finished.evaluation()["seeds"][0]
    zero_shot, winner = draws(finished, "zero-shot", 2)[0], draws(finished, "winner", 2)[0]
    said = {
        (r["truth"], r["prediction"], w["prediction"])
        for r, w in zip(zero_shot, winner, strict=True)
    }
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    text = (finished.folder / "report/report.html").read_text(encoding="utf-8")
    for one in examples:
        triple = tuple(names.index(one[key]) for key in ("truth", "before", "after"))
        assert triple in said
        assert (one["truth"] == one["before"]) != (one["truth"] == one["after"])
        assert (one["shots"], one["seed"]) == (2, seed)
        assert b64encode(one["png"]).decode() in text


def test_the_winner_is_exported_with_its_test_accuracy(
    finished: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed, trial = finished.evaluation()["seeds"][1], finished.evaluation()["winner"]
    out = tmp_path / "out"
    call = ["done", "--storage", str(finished.storage), "--output", str(out), "--episode"]
    assert export.main([*call, "seed9"]) == 2
    assert f"2shot-seed{seed}" in capsys.readouterr().err
    assert export.main([*call, f"2shot-seed{seed}"]) == 0
    assert f"(taskres, digits, 2 shots, seed {seed})" in capsys.readouterr().out
    card = json.loads((out / "card.json").read_text())
    assert (card["shots"], card["seed"], card["trial"]) == (2, seed, trial)
    assert card["validation"]["images"] == card["verified"]["images"]
    scores = finished.evaluation()["scores"]
    (judged,) = (s for s in scores if (s["label"], s["shots"]) == ("winner", 2))
    assert card["test"] == [
        {
            "dataset": "digits",
            "part": "test",
            "accuracy": judged["values"][1],
            "images": judged["images"],
        }
    ]
    learned = finished.folder / f"winner/artifact-2shot-seed{seed}.safetensors"
    found = [load_file(path) for path in (learned, out / "artifact.safetensors")]
    assert found[0].keys() == found[1].keys()
    assert all(found[0][name].equal(tensor) for name, tensor in found[1].items())


WHY = {"gone": "is missing", "cut": "is damaged", "flipped": "is damaged"}


@pytest.mark.parametrize("damage", WHY)
def test_an_evaluation_without_predictions_has_a_report(copy: Sweep, damage: str) -> None:
    path = copy.folder / "predictions.arrow"
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:999])
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    write_report(source(copy))
    shown = page(copy)
    assert WHY[damage] in shown.text
    assert "are therefore missing" in shown.text
    assert "Test accuracy (%)" in shown.tables
    assert "Calibration (%)" not in shown.tables


def test_an_evaluation_that_was_cut_short_is_made_again(copy: Sweep) -> None:
    """A kill between its files leaves predictions without `evaluation.json`, or an old trial's."""
    before, predicted = copy.evaluation(), rows_of_predictions(copy)
    (copy.folder / "evaluation.json").unlink()
    (copy.folder / "predictions.arrow").write_bytes(encode_predictions([]))
    run = Sweep(copy.storage, "done").run(*OPTIONS)
    assert run.returncode == 0, run.stderr
    assert copy.evaluation() == before
    assert rows_of_predictions(copy) == predicted
    evaluated = models_that_read(copy)
    assert sorted(evaluated) == sorted(2 * list(set(evaluated)))


def test_a_report_of_a_thousand_trials_is_quick_and_small(copy: Sweep) -> None:
    """Under 15 s of one processor and under 6 MB."""
    rng = random.Random(0)
    results = [r for r in copy.results().values() if r["state"] == "COMPLETE"]
    for number in range(5, 1000):
        like = results[number % len(results)]
        folder = copy.folder / f"trials/{number:06d}"
        shutil.copytree(copy.folder / f"trials/{like['number']:06d}", folder)
        value = min(like["value"], 0.9) * rng.random()
        lr = rng.uniform(1e-4, 1e-2)
        record = like | {"number": number, "value": value}
        record |= {"parameters": like["parameters"] | {"lr": lr}}
        (folder / "result.json").write_text(json.dumps(record))
    start = time.process_time()
    files = write_report(source_of(LocalStorage(copy.folder)))
    took = time.process_time() - start
    assert len(parquet.read_table(copy.folder / "report/trials.parquet")) == 1000
    assert "figures/parallel.json" in files
    assert took < 15
    assert (copy.folder / "report/report.html").stat().st_size < 6e6


def test_ties_are_counted_on_the_images_of_the_record(finished: Sweep) -> None:
    record = json.loads((finished.folder / "sweep.json").read_text())
    # Two of each of the ten digits; the draw of one shot validates on some of them.
    assert record["val_images"] == 20
    mine = source(finished)
    values = {r.number: r.accuracy for r in mine.of("COMPLETE") if r.accuracy is not None}
    found = indistinguishable(values, record["val_images"])
    assert ("cannot separate" in page(finished).text) == bool(found)
    old = dataclasses.replace(mine, record=dataclasses.replace(mine.record, val_images=None))
    assert "is unknown" in tie_note(old)


def test_residuals_are_measured_on_the_winner_s_files(finished: Sweep) -> None:
    shown = page(finished)
    if "The winner's residuals" not in shown.tables:
        pytest.skip("the winner of this sweep has no text residual")
    rows = shown.tables["The winner's residuals"]
    place = rows[0].index("mean |x|")
    for row in rows[1:]:
        sizes = []
        for path in sorted((finished.folder / "winner").glob(f"artifact-{row[2]}shot-*")):
            with safe_open(path, framework="np") as file:
                sizes.append(float(abs(file.get_tensor("residual")).mean(dtype="float64")))
        assert len(sizes) == 2
        mean, spread = (float(text) for text in row[place].split(" ± "))
        assert mean == pytest.approx(statistics.fmean(sizes), abs=6e-5)
        assert spread == pytest.approx(statistics.stdev(sizes), abs=6e-5)
        zero_shot = next(
            statistics.fmean(s["values"])
            for s in finished.evaluation()["scores"]
            if s["label"] == "zero-shot" and str(s["shots"]) == row[2]
        )
        assert row[4] == f"{0.1 / zero_shot:.4f}"


def test_the_parquet_file_holds_every_trial_exactly(finished: Sweep) -> None:
    rows = parquet.read_table(finished.folder / "report/trials.parquet").to_pylist()
    results = finished.results()
    assert [row["number"] for row in rows] == sorted(results)
    for row in rows:
        result = results[row["number"]]
        for name in ("state", "value", "train_seconds", "begun", "ended", "values"):
            assert row[name] == result[name]
        for name, value in result["metrics"].items():
            assert row[f"metric.{name}"] == value
        assert row["config.lr"] == result["config"]["optim"]["lr"]
        for name, value in result["parameters"].items():
            assert row[f"param.{name}"] in (value, str(value))


def test_provenance_names_every_read_and_fingerprint(finished: Sweep) -> None:
    shown = page(finished)
    reads = (finished.folder / "test_reads.jsonl").read_text().splitlines()
    assert len(shown.tables["Every read of a test split"]) == 1 + len(reads)
    record = json.loads((finished.folder / "sweep.json").read_text())
    for text in (*record["fingerprints"].values(), *record["versions"].values(), record["id"]):
        assert text in shown.text


def test_the_page_makes_no_requests(finished: Sweep) -> None:
    text = (finished.folder / "report/report.html").read_text(encoding="utf-8")
    shown = Page(text)
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in shown.addresses)
    assert text.count("<script") == 3  # the figures, Plotly, the page's own
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "connect-src" not in policy[1]
    for script in re.findall(r"<script>(.*?)</script>", text, re.DOTALL):
        digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[1]


def test_the_page_begins_with_the_numbers_of_the_raw_results(finished: Sweep) -> None:
    text = (finished.folder / "report/report.html").read_text(encoding="utf-8")
    first = text[: text.index('<section id="winner"')]
    mean = 100 * statistics.fmean(values(finished, "winner"))
    gains = zip(values(finished, "winner"), values(finished, "zero-shot"), strict=True)
    gain = 100 * statistics.fmean(a - b for a, b in gains)
    for shown in (f"{mean:.1f} %", f"{gain:+z.1f} points", "5 of 5", "Optimisation history"):
        assert shown in first


def test_every_trial_is_in_the_page_s_table(finished: Sweep) -> None:
    table = page(finished).tables["5 finished trials, 0 unfinished"]
    objective, accuracy = "validation likelihood (%)", "validation accuracy (%)"
    assert table[0][:5] == ["trial", "state", objective, accuracy, "trained (%)"]
    results = finished.results()
    assert sorted(int(row[0]) for row in table[1:]) == sorted(results)
    for row in table[1:]:
        result = results[int(row[0])]
        assert row[2] == f"{100 * result['value']:.2f}"
        assert row[3] == f"{100 * result['metrics']['val/accuracy']:.2f}"
        if "lr" in table[0]:
            assert row[table[0].index("lr")] == f"{result['parameters']['lr']:.6g}"


def test_the_configuration_begins_with_what_was_searched(finished: Sweep) -> None:
    shown = page(finished)
    winner = finished.evaluation()["winner"]
    rows = shown.tables[f"Configuration of trial {winner}: the searched settings"][1:]
    searched = {name for r in finished.results().values() for name in r["parameters"]}
    assert {row[0] for row in rows} <= searched
    (fixed,) = (t for name, t in shown.tables.items() if name.endswith("fixed settings"))
    assert not {row[0] for row in fixed[1:]} & searched
    assert "python -m search.run --space taskres" in shown.text


def test_names_are_never_markup(copy: Sweep) -> None:
    evil = "folder:/x/<script>alert('$1$')</script>&.csv"
    for name in ("evaluation.json", "test_reads.jsonl", "sweep.json"):
        path = copy.folder / name
        path.write_text(path.read_text().replace('"digits"', json.dumps(evil)))
    write_report(source(copy))
    text = (copy.folder / "report/report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert evil in Page(text).text
    table = (copy.folder / "report/tables/reads.md").read_text()
    assert "<script" not in table.replace("\\<", "\\")


def test_a_running_sweep_says_so(copy: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    (copy.folder / "evaluation.json").unlink()
    with SweepLock(LocalStorage(copy.folder)):
        assert main(["done", "--storage", str(copy.storage)]) == 0
    assert "The sweep is still running" in capsys.readouterr().out
    shown = page(copy)
    assert "The sweep is still running" in shown.text
    assert "not been evaluated" in shown.text
    assert "Test accuracy (%)" not in shown.tables
    assert main(["done", "--storage", str(copy.storage)]) == 0
    assert "The sweep is still running" not in page(copy).text


def test_an_evaluation_of_another_trial_is_not_the_winner_s(copy: Sweep) -> None:
    path = copy.folder / "evaluation.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"winner": found["winner"] + 100}))
    write_report(source(copy))
    shown = page(copy)
    assert "is no longer the winner" in shown.text
    assert "Test accuracy (%)" not in shown.tables


def test_an_evaluation_of_another_version_is_not_none(copy: Sweep) -> None:
    record = copy.evaluation()
    del record["protocol"]
    (copy.folder / "evaluation.json").write_text(json.dumps(record))
    notes = winner_section(source(copy)).notes
    assert "Its evaluation cannot be read" in notes[-1]
    assert not any("not been evaluated" in note for note in notes)


def test_a_read_whose_line_is_torn_is_listed(copy: Sweep) -> None:
    with open(copy.folder / "test_reads.jsonl", "ab") as file:
        file.write(b'{"time": 1.0, "data{"time": 2.0, "dataset": "digits", "judged": []}\n')
    table = next(t for t in provenance_section(source(copy)).tables if t.name == "reads")
    reads = (copy.folder / "test_reads.jsonl").read_text().splitlines()
    assert len(table.rows) == len(reads)
    assert [row[1] for row in table.rows if row[1] != "digits"] == [
        "this line of the record cannot be parsed"
    ]


def test_what_an_earlier_report_showed_goes(copy: Sweep) -> None:
    old = copy.folder / "report/figures/old.json"
    old.write_bytes(b"")
    own = copy.folder / "report/my notes.txt"  # a person's
    own.write_bytes(b"")
    write_report(source(copy))
    assert not old.exists()
    assert own.exists()


def test_compared_sweeps_stand_side_by_side(copy: Sweep) -> None:
    shutil.copytree(copy.folder, copy.storage / "other")
    record = json.loads((copy.storage / "other/sweep.json").read_text())
    record["config"]["name"] = "other"
    (copy.storage / "other/sweep.json").write_text(json.dumps(record))
    assert main(["done", "--storage", str(copy.storage)]) == 0
    own = {p: p.read_bytes() for p in (copy.folder / "report").rglob("*") if p.is_file()}
    assert main(["done", "--compare", "other", "--storage", str(copy.storage)]) == 0
    assert {path: path.read_bytes() for path in own} == own
    rows = page(copy, "report/compare-other").tables["Test accuracy on digits (%)"]
    # One zero-shot model for both: it was measured on the same draws.
    assert [row[0] for row in rows[1:]] == [
        "zero-shot (done)",
        *("the paper's setting (done)", "the paper's setting (other)"),
        *("the winner (done)", "the winner (other)"),
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backbone": "RN50"}, "backbone: 'tiny' and 'RN50'"),
        ({"protocol": "base-to-new"}, "protocol: 'few-shot' and 'base-to-new'"),
        ({"draws": "coop"}, "draws: 'seeded' and 'coop'"),
    ],
)
def test_what_was_not_measured_alike_is_not_compared(
    finished: Sweep, change: dict[str, Any], words: str
) -> None:
    mine = source(finished)
    task = dataclasses.replace(mine.config.task, **change)
    other = dataclasses.replace(
        mine, config=dataclasses.replace(mine.config, task=task, name="other")
    )
    with pytest.raises(UsageError, match=words):
        comparable(mine, [other])


def test_other_images_under_one_name_are_not_compared(finished: Sweep) -> None:
    mine = source(finished)
    prints = dict(mine.record.fingerprints) | {"train": "0"}
    config = dataclasses.replace(mine.config, name="other")
    record = dataclasses.replace(mine.record, fingerprints=prints)
    other = dataclasses.replace(mine, config=config, record=record)
    with pytest.raises(UsageError, match=r"the images of digits \(train\)"):
        comparable(mine, [other])
    with pytest.raises(UsageError, match="each once"):
        comparable(mine, [mine])


def test_a_sweep_that_is_not_there(
    tmp_path: Path, finished: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["nothing", "--storage", str(finished.storage)]) == 2
    assert "There is no sweep 'nothing'" in (told := capsys.readouterr().err)
    assert "done" in told
    assert main(["nothing", "--storage", str(tmp_path)]) == 2
    assert "There is none yet" in capsys.readouterr().err


def test_a_sweep_without_a_finished_trial(copy: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copy.folder / "trials")
    assert main(["done", "--storage", str(copy.storage)]) == 2
    told = capsys.readouterr().err
    assert "needs a finished trial" in told
    assert "--resume done" in told


def test_a_sweep_of_another_version(copy: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy.folder / "sweep.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    assert main(["done", "--storage", str(copy.storage)]) == 2
    assert "'format' is 1, this version reads" in capsys.readouterr().err


def test_trials_of_which_none_is_complete(copy: Sweep) -> None:
    for path in copy.folder.glob("trials/*/result.json"):
        plain = json.loads(path.read_text())
        failed = {"state": "FAIL", "value": None, "reason": "no memory"}
        path.write_text(json.dumps(plain | failed))
    sections = {section.name: section for section in sections_of(source(copy))}
    assert "no trial has completed yet" in sections["winner"].notes[0]
    assert set(sections) == {"winner", "search", "trials", "provenance"}


def test_a_report_that_fails_is_no_end_of_a_sweep(
    copy: Sweep, caplog: pytest.LogCaptureFixture
) -> None:
    (copy.folder / "sweep.json").write_text("{}")
    report_at_end(LocalStorage(copy.folder))
    assert "python -m search.report done" in caplog.text


def test_a_bucket_holds_a_report_too(copy: Sweep) -> None:
    """pyarrow's view of a local folder behaves as a bucket's client does."""
    from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

    from trainables.core.storage import ObjectStorage

    reads = copy.folder / "test_reads.jsonl"
    content = reads.read_bytes()
    reads.unlink()
    reads.mkdir()
    (reads / "000000000.part").write_bytes(content)
    shutil.rmtree(copy.folder / "report")
    for folder in ("report/figures", "report/tables"):  # a bucket needs no folders
        (copy.folder / folder).mkdir(parents=True)
    files = SubTreeFileSystem(str(copy.storage), LocalFileSystem())
    bucket = ObjectStorage(files, "done", "mock://done", 1.0)
    written = write_report(source_of(bucket))
    assert {"report.html", "trials.parquet"} <= set(written)
    assert len(page(copy).tables["Every read of a test split"]) == 1 + len(content.splitlines())


def test_the_command_line_works_in_a_process_of_its_own(copy: Sweep) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "search.report", "done", "--storage", str(copy.storage)],
        capture_output=True,
        text=True,
        timeout=500,
        env=environment(),
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines() == [f"Report: {copy.folder / 'report/report.html'}"]
    assert found.stderr == ""


def test_read_source_knows_the_folder(finished: Sweep) -> None:
    found = read_source("done", str(finished.storage))
    assert found.running is None
    assert found.sweep.location == open_storage(str(finished.folder)).location
    assert len(found.results) == 5
