"""The records of a trial and of a sweep: every kind of content is read, or refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search.core.config import SweepConfig
from search.core.init_from import Start
from search.core.objectives import best_of, front_of, parse_objective
from search.core.problems import UsageError
from search.core.results import (
    ISSUED,
    RESULT,
    IssuedTrial,
    Result,
    commit,
    exact,
    read_issued,
    read_results,
    write_issued,
)
from search.core.sweep_folder import SWEEP_FILE, SweepFolder, SweepRecord
from spaces.registry import SPACES
from trainables.core.storage import LocalStorage
from trainables.methods.base import TaskFacts
from trainables.trial import TaskSpec
from trainables.trial_run import mean_accuracy

TRIAL = SPACES["rmt+taskres"].build(TaskFacts("digits", 4, 40, "vit")).paper.to_dict()
DRAWN = '{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}'
RESULT_RECORD = Result(
    *(0, "COMPLETE", 0.5, (0.25, 0.5), {"val/accuracy": 0.5, "val/loss": 1.0}, {"a": 1}),
    *({"a": DRAWN}, {"completed_rung_0": 0.25}, TRIAL, 1.5, 10.0, 20.0, "host", ("w",)),
    study_attrs={"NSGAIISampler:parent:0": [0, 1]},
)
ISSUED_RECORD = IssuedTrial(0, TRIAL, {"a": 1}, {"a": DRAWN}, {}, {}, 10.0, (0.25,), 2, 1, 1)
START = Start(
    "/x",
    "id",
    3,
    SPACES["rmt"].build(TaskFacts("digits", 4, 40, "vit")).paper,
    TaskSpec(("digits",), "tiny", (4,), (1,)),
    {"backbone": "f"},
)
SWEEP_RECORD = SweepRecord(
    "id", SweepConfig(init_from=START), {"backbone": "f"}, "/x", 40, {"torch": "2"}
)


def prepared(folder: Path) -> dict[str, tuple[Path, Callable[[], Any]]]:
    """A folder with one record of each kind: name -> file, and what reads it."""
    sweep = LocalStorage(folder)
    SweepFolder(sweep).write_record(SWEEP_RECORD)
    commit(sweep, RESULT_RECORD, [])
    write_issued(sweep, replace(ISSUED_RECORD, number=1))
    return {
        "sweep": (folder / SWEEP_FILE, lambda: SweepFolder(sweep).record),
        "result": (folder / "trials/000000" / RESULT, lambda: read_results(sweep)[0]),
        "issued": (folder / "trials/000001" / ISSUED, lambda: read_issued(sweep)[1]),
    }


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = {name: read() for name, (_, read) in prepared(tmp_path).items()}
    assert found["sweep"] == SWEEP_RECORD
    assert found["result"] == RESULT_RECORD
    assert found["issued"] == replace(ISSUED_RECORD, number=1)


def paths(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in a JSON document."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, inner in items:
        found += paths(inner, (*path, key))
    return found


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**30, -1, 3.7, 1e308, float("nan"), float("inf"), "", "0.5", "\ud800"]),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(0, 1), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(0, 1), max_size=2),
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(["sweep", "result", "issued"]), value=VALUES, data=st.data())
def test_any_value_in_any_field_is_accepted_or_refused_in_one_line(
    kind: str, value: object, data: st.DataObject, tmp_path: Path
) -> None:
    file, read = prepared(tmp_path)[kind]
    document = json.loads(file.read_text())
    path = data.draw(st.sampled_from(paths(document)))
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    if data.draw(st.integers(0, 5)) == 0:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    file.write_text(json.dumps(document))
    try:
        found = read()
    except UsageError as error:
        assert_names(error, file, "")
    else:
        assert isinstance(found, SweepRecord | Result | IssuedTrial)


def assert_names(error: UsageError, file: Path, field: str) -> None:
    (line,) = error.problems
    assert "\n" not in line
    assert file.name in line
    assert field in line


@pytest.mark.parametrize("kind", ["sweep", "result", "issued"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"5",
        b"{",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"format": ' + b"[" * 100_000,
        b'{"format": NaN}',
        b'{"format": "\\ud800"}',
        b'{"format": 99}',
        b'{"format": true}',
        b'{"format": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda content: content[:20].decode("latin-1"),
)
def test_a_file_of_foreign_content_is_refused_in_one_line(
    kind: str, content: bytes, tmp_path: Path
) -> None:
    file, read = prepared(tmp_path)[kind]
    file.write_bytes(content)
    with pytest.raises(UsageError) as found:
        read()
    assert_names(found.value, file, "")


@pytest.mark.parametrize(
    ("kind", "change", "field"),
    [
        ("result", {"value": 3.7}, "'value'"),
        ("result", {"values": [0.5, True]}, "'values[1]'"),
        (
            "result",
            {"config": TRIAL | {"optim": TRIAL["optim"] | {"lr": "x"}}},
            "'config.optim.lr'",
        ),
        ("result", {"parameters": {"a": "\x00"}}, "'parameters.a'"),
        ("result", {"parameters": {"a": 3}}, "'parameters.a'"),
        ("result", {"parameters": {}}, "'parameters.a'"),
        ("result", {"distributions": {"a": "{}"}}, "'parameters.a'"),
        ("issued", {"parameters": {"a": "x"}}, "'parameters.a'"),
        ("issued", {"values": ["x"]}, "'values[0]'"),
        ("issued", {"failures": -1}, "'failures'"),
        ("issued", {"distributions": {"a": 1}}, "'distributions.a'"),
        ("sweep", {"id": 5}, "'id'"),
        ("sweep", {"val_images": 0}, "'val_images'"),
        ("sweep", {"fingerprints": {"backbone": None}}, "'fingerprints.backbone'"),
        ("sweep", {"config": SWEEP_RECORD.config.to_dict() | {"trials": "x"}}, "'config.trials'"),
        ("sweep", {"config": {}}, ""),
        ("sweep", {"config": SWEEP_RECORD.config.to_dict() | {"\r": 0}}, r"'config.\r'"),
        ("result", {"distributions": {"\n": "{}"}}, r"'parameters.\n'"),
    ],
)
def test_the_field_is_named(
    kind: str, change: dict[str, object], field: str, tmp_path: Path
) -> None:
    file, read = prepared(tmp_path)[kind]
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    if change == {"config": {}}:  # all settings have defaults
        assert read().config == SweepConfig()
        return
    with pytest.raises(UsageError) as found:
        read()
    assert_names(found.value, file, field)


def test_a_sweep_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    file, read = prepared(tmp_path)["sweep"]
    record = json.loads(file.read_text())
    config = record["config"]
    del config["study_storage"]
    config |= {"ledger": "journal", "also": config.pop("second_objective")}
    config |= {"start": config.pop("init_from")}
    config["task"] |= {"draws": "own", "made_split": config["task"].pop("generate_split")}
    file.write_text(json.dumps(record))
    assert read() == SWEEP_RECORD


def test_a_trial_that_ends_while_it_is_read_is_left_out(tmp_path: Path) -> None:
    prepared(tmp_path)

    class Racing(LocalStorage):
        def read(self, name: str) -> bytes:
            if name.endswith(ISSUED):
                (self.root / name).unlink()
            return super().read(name)

    assert read_issued(Racing(tmp_path)) == {}


# --- ties ----------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 60), st.randoms()), min_size=1, max_size=6), st.data())
def test_equal_counts_have_equal_means(images: list[tuple[int, Any]], data: st.DataObject) -> None:
    sizes = [count for count, _ in images]
    correct = [data.draw(st.integers(0, count)) for count in sizes]
    values = [right / count for right, count in zip(correct, sizes, strict=True)]
    order = data.draw(st.permutations(range(len(sizes))))
    mean = mean_accuracy(values, sizes)
    assert mean == mean_accuracy([values[i] for i in order], [sizes[i] for i in order])
    assert mean == pytest.approx(sum(values) / len(values), abs=1e-12)
    assert exact(mean) == mean
    if len(set(sizes)) == 1:
        assert mean == sum(correct) / sum(sizes)


def result(number: int, value: float, loss: float) -> Result:
    return replace(
        RESULT_RECORD,
        number=number,
        value=value,
        values=(value,),
        metrics={"val/accuracy": value, "val/loss": loss},
    )


def test_results_whose_values_differ_by_rounding_tie() -> None:
    """22 + 23 + 23 and 22 + 22 + 24 correct of 3 x 25, as older versions added them."""
    first, second = ((22 + 23 + 23) / 75, (22 / 25 + 22 / 25 + 24 / 25) / 3)
    assert first == pytest.approx(second)
    for one, other in ((0.9066666666666667, 0.9066666666666666), (first, second)):
        for values in ((one, other), (other, one)):
            results = [result(0, values[0], 0.2), result(1, values[1], 0.1)]
            assert best_of(results) == results[1]  # the lower loss
            assert results[0].value == results[1].value
            # Neither is better: the front has the cheaper one alone.
            assert front_of(results, parse_objective("val/loss:min")) == [1]


@given(st.integers(1, 10**5).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_exact_changes_no_fraction(fraction: tuple[int, int]) -> None:
    value = fraction[0] / fraction[1]
    assert exact(value) == value
    assert exact(value + 2e-16) == value or value + 2e-16 == value
    assert exact(value + 1e-12) > value
