"""From the command line to a configuration; no value of any option ends in a traceback."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search.completion import COMMANDS
from search.core.config import SweepConfig
from search.core.problems import UsageError
from search.core.sweep_file import sweep_text
from search.core.task_options import per_fold, per_task
from search.driver import preflight as preflight_module
from search.driver.backbone_probe import BackboneProbe, Facts
from search.driver.preflight import preflight_each
from search.options import build_parser, configure, read_request
from search.terminal.option_values import names
from search.terminal.parser import Parser
from tests.trainables.data.trees import paint
from trainables.data.registry import BASE_TASKS


def test_sets_of_tasks() -> None:
    task = configure(
        ["--dataset", "digits,digits-rotated", "--shots", "1,4", "--seeds", "1,2"]
    ).task
    assert task.datasets == ("digits", "digits-rotated")
    assert len(task.episodes) == 8
    assert [cell.seed for cell in task.episodes] == [1] * 4 + [2] * 4
    assert configure(["--dataset", "all11"]).task.datasets == BASE_TASKS


def test_a_path_may_have_commas(tmp_path: Path) -> None:
    """An existing path with commas is one path; a missing one is split into names."""
    for name in ("sp", "sp,x", "a,b,c"):
        (tmp_path / name).mkdir()
    one, two = f"folder:{tmp_path}/sp,x", f"folder:{tmp_path}/a,b,c"
    assert names(f"{one},dtd,{two}") == [one, "dtd", two]
    assert names(f"folder:{tmp_path}/sp,digits") == [f"folder:{tmp_path}/sp", "digits"]
    assert names("folder:nowhere,x,,all11") == ["folder:nowhere", "x", *BASE_TASKS]


def test_one_search_a_task() -> None:
    options = ["--dataset", "digits,digits-rotated", "--shots", "1,4", "--per-task"]
    found = per_task(configure(options))
    assert [(c.task.datasets, c.task.shots) for c in found] == [
        ((name,), (shots,)) for name in ("digits", "digits-rotated") for shots in (1, 4)
    ]
    assert not any(config.per_task for config in found)
    assert len({config.sweep_name for config in found}) == 4
    named = per_task(configure([*options, "--name", "mine"]))
    assert [config.name for config in named][:2] == ["mine-digits-1shot", "mine-digits-4shot"]
    assert per_task(SweepConfig()) == [SweepConfig()]
    alike = ["--dataset", "folder:a/birds,folder:b/birds,folder:c/birds2", "--per-task"]
    named = per_task(configure([*alike, "--shots", "1", "--name", "mine"]))
    stems = ["mine-birds1-1shot", "mine-birds2_-1shot", "mine-birds2-1shot"]
    assert [config.name for config in named] == stems
    crossed = ["--dataset", "digits,digits-rotated", "--protocol", "cross-dataset", "--per-task"]
    (only,) = per_task(configure(crossed))
    assert only.task.datasets == ("digits", "digits-rotated")


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWSHOT_DATA", "trees")
    config = configure(["--dataset", "folder:mine", "--shots-file", "d/{dataset}-{seed}.json"])
    assert config.task.datasets == (f"folder:{tmp_path}/mine",)
    assert config.task.draws == f"file:{tmp_path}/d/{{dataset}}-{{seed}}.json"
    assert config.data == str(tmp_path / "trees")
    assert configure(["--data", "other"]).data == str(tmp_path / "other")
    monkeypatch.setenv("FEWSHOT_DATA", "~/sets")  # which no shell has expanded
    assert configure([]).data == os.path.expanduser("~/sets")


def _own_images(folder: Path, *sizes: int) -> str:
    for label, size in enumerate(sizes):
        for i in range(size):
            paint(folder / f"class {label}" / f"{i}.png", label, i)
    return f"folder:{folder}"


@pytest.mark.parametrize(
    ("validation", "draws", "shots"),
    [((), "joined", 6), (("--validation", "held-out"), "seeded-capped", 4)],
)
def test_every_labelled_image(
    validation: tuple[str, ...], draws: str, shots: int, tmp_path: Path
) -> None:
    """Of eight images of a class two are for the test, and two may be for validation."""
    own = _own_images(tmp_path, 8, 4)
    options = ["--space", "taskres", "--dataset", own, "--shots", "all", *validation]
    config = configure(options)
    assert (config.task.draws, config.task.shots) == (draws, (shots,))
    assert config.problems() == []
    drawn = config.task.source("").draw(own, shots, 1)
    assert drawn.train.labels.bincount().tolist() == ([6, 3] if draws == "joined" else [4, 2])
    again = configure(["--dataset", own, *options[4:], "--draws", "coop"])
    assert again.task.draws == "coop"


def test_every_labelled_image_in_a_file(tmp_path: Path) -> None:
    own = _own_images(tmp_path / "own", 8, 4)
    (tmp_path / "sweep.yaml").write_text(f"space: gda\ndataset: {own}\nshots: all\n")
    config = configure([str(tmp_path / "sweep.yaml")])
    assert config.task.shots == (6,)
    (tmp_path / "sweep.yaml").write_text(sweep_text(config))
    assert configure([str(tmp_path / "sweep.yaml")]) == config


def test_every_labelled_image_and_what_it_excludes(tmp_path: Path) -> None:
    for options, match in (
        (["--shots", "all", "--shots-file", "x.json"], "--shots-file must be omitted"),
        (["--shots", "1,all"], "got '1,all', or all"),
    ):
        with pytest.raises(UsageError, match=match):
            configure(options)
    missing = configure(["--shots", "all", "--dataset", f"folder:{tmp_path / 'no'}"])
    assert missing.task.shots == SweepConfig().task.shots
    (problem,) = configure(["--draws", "joined"]).problems()
    assert "needs --validation folds" in problem


def test_images_are_drawn_by_one_rule() -> None:
    unknown, protocol = configure(["--draws", "seeds", "--protocol", "few"]).problems()
    assert "There is no protocol 'few'" in unknown + protocol
    assert "There is no rule for --draws 'seeds'." in unknown + protocol
    assert "Did you mean 'seeded'?" in unknown + protocol
    with pytest.raises(UsageError, match="not both"):
        configure(["--draws", "coop", "--shots-file", "x.json"])


def test_each_use_of_an_option_has_its_own_mistakes(tmp_path: Path) -> None:
    texts = ["--class-names", str(tmp_path / "none"), "--prompt", "", "--prompt", "a photo"]
    request = read_request(["--set", "=1", "--set", "leak=2", "--set", "epochs", *texts])
    assert request.config.settings.set == {"leak": 2}
    assert [problem.split()[0] for problem in request.problems] == [
        "--set",
        "--set",
        "--class-names",
    ]
    assert len([p for p in request.config.problems() if p.startswith("--prompt must have {}")]) == 2
    assert request.task_is_known  # so the data is checked, too


def test_a_field_that_is_no_option_is_set() -> None:
    (problem,) = read_request(["--leak", "0.3", "--batch-size=8"]).problems
    assert problem.endswith("Use --set batch_size=VALUE and --set leak=VALUE. See --help.")


@pytest.mark.parametrize("path", ["a" * 5000, "/".join(["a" * 200] * 30)])
def test_a_path_that_cannot_be_looked_up_is_refused_like_any_other(path: str) -> None:
    (problem,) = read_request(["--dataset", f"folder:{path},digits"]).problems
    assert problem.startswith("--dataset must")


def test_only_an_option_that_exists_is_suggested() -> None:
    (unknown,), (close,) = (read_request([name]).problems for name in ("--leek", "--trails"))
    assert unknown == "Unrecognized arguments: --leek. See --help."
    assert "Did you mean --trials?" in close


# --- every option, every kind of value -----------------------------------------------------------

EXTREMES = (
    *(
        "",
        " ",
        ",",
        ",,",
        "nan",
        "inf",
        "-inf",
        "-0",
        "0",
        "-1",
        "1e308",
        "-1e308",
        "1e-9",
        "1e-400",
    ),
    *("9" * 20, "9" * 400, "9" * 5000, str(2**63), str(2**64), "1,,2", "1,2,", f"1,{2**64}"),
    *("a\0b", "\ud800", "\udcff", "\x1b[31mred", "a\nb", "\u202e", "x" * 300, "a/" * 3000, "é"),
    *("~nobody/x", "/", "..", "/dev/null", "folder:", "folder:~nobody", "folder:/dev/null"),
    *("bundle:", "bundle:/", "file:", "://", "s3://", "http://[::1", "postgresql://[::1/db"),
    *("sqlite:///", "{", "{x}", "{seed:>1000000000}", "%s", "%(default)s", "--", "-", "-x", "@"),
    *("a@", "@tiny", "x.safetensors@", "openai:", "RN50:/dev/null", ":max", "[::1]:99999999"),
)
VALUED = [a.option_strings[-1] for a in build_parser()._actions if a.nargs is None]


class SharedProbe(BackboneProbe):
    """Loads each backbone once."""

    loaded: dict[str, BackboneProbe] = {}  # noqa: RUF012 - of all tests

    def __enter__(self) -> BackboneProbe:
        return self.loaded.setdefault(self._spec, self)

    @cache  # noqa: B019 - as long as `loaded`
    def facts(self) -> Facts:
        return super().facts()

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, without another process for the backbone, and without a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight_module, "BackboneProbeProcess", SharedProbe)
    monkeypatch.setattr(preflight_module, "_hub_answers", lambda: False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def check(arguments: list[str]) -> None:
    """A plan, or problems of one short line each."""
    request = read_request(arguments)
    problems = request.problems
    if not problems:
        try:
            parts = per_task(request.config)
            preflight_each(request.config, parts, trial_write=False)
        except UsageError as error:
            problems = error.problems
    for problem in problems:
        assert problem == problem.strip() != ""
        assert "\n" not in problem
        assert len(problem) < 2000


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 6))]
)
@pytest.mark.parametrize("option", VALUED)
@pytest.mark.usefixtures("_alone")
def test_extreme_values_are_refused_in_one_line_or_work(option: str, part: int) -> None:
    """By default each value is given to every sixth option, and each option gets every sixth."""
    for value in EXTREMES[(VALUED.index(option) + part) % 6 :: 6]:
        check([f"{option}={value}"])
    assert not list(Path().rglob("*"))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [a.option_strings[-1] for a in build_parser()._actions[3:] if a.option_strings]
            ),
            st.one_of(
                st.text(max_size=12),
                st.sampled_from(EXTREMES),
                st.integers().map(str),
                st.floats().map(str),
            ),
        ),
        max_size=4,
    )
)
@pytest.mark.usefixtures("_alone")
def test_any_options_together(options: list[tuple[str, str]]) -> None:
    check([word for pair in options for word in pair])


@pytest.mark.parametrize("command", COMMANDS)
@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.one_of(st.text(max_size=8), st.sampled_from(EXTREMES)), max_size=5))
def test_every_command_reads_any_words(command: str, words: list[str]) -> None:
    parser = COMMANDS[command]()
    options = [option for action in parser._actions for option in action.option_strings]
    for arguments in (words, [f"{o}={w}" for o, w in zip(options[4:], words, strict=False)]):
        with suppress(SystemExit):  # of -h and --version
            _, problems = parser.parse(arguments)
            assert all("\n" not in problem for problem, _ in problems)


def test_a_wrong_value_does_not_hide_the_next(tmp_path: Path) -> None:
    parser = Parser("search.test", "A test.")
    parser.add_argument("name")
    parser.add_argument("--number", type=int)
    parser.add_argument("--kind", choices=("a", "b"))
    parser.add_argument("--on", action="store_true")
    with pytest.raises(UsageError) as found:
        parser.parse_args(["--number", "x", "--kind=c", "--on=1", "--other", "--number"])
    words = [problem.split(" ")[0:3] for problem in found.value.problems]
    assert len(words) == 6, found.value.problems  # the missing name is one of them
    assert parser.parse_args(["x", "--number", "-3"]) == argparse.Namespace(
        name="x", number=-3, kind=None, on=False
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["--also", "mask/sparsity:max"], ["--second-objective", "mask/sparsity:max"]),
        (["--make-split"], ["--generate-split"]),
        (["--draws", "own"], ["--draws", "seeded"]),
    ],
)
def test_old_spellings_work_and_are_not_shown(old: list[str], new: list[str]) -> None:
    assert configure(old) == configure(new)
    assert f" {old[0]} " not in build_parser().format_help() or old[0] == new[0]


def test_defaults_of_validation_suit_the_cost_of_a_trial(tmp_path: Path) -> None:
    """Features: all labelled images, no pruning, an ensemble. Your own images: inside the shots of
    one draw, if a class has several."""
    chosen = ("validation", "objective")

    def found(*options: str) -> tuple[object, ...]:
        config = configure(options)
        task = tuple(getattr(config.task, name) for name in chosen)
        return (*task, config.pruner, config.select, len(config.task.seeds))

    features = ("pooled", "likelihood", "none", "ensemble", 3)
    own = f"folder:{tmp_path}"
    assert found("--space", "gda") == features
    assert found("--space", "gda", "--dataset", own, "--shots", "1") == features
    assert found("--space", "gda", "--dataset", own, "--seeds", "4,5,6") == features
    assert found("--space", "gda", "--dataset", own) == ("folds", *features[1:4], 1)
    assert found("--space", "gda", "--validation", "folds") == ("folds", *features[1:4], 1)
    assert found("--space", "enhanced-base")[3] == "best"
    assert found("--space", "coop")[2:] == ("asha", "best", 1)
    assert found("--space", "rmt", "--dataset", own)[0] == "held-out"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--validation", "folds", "--shots", "1"), "needs at least 2 images per class"),
        (("--validation", "folds", "--space", "rmt+taskres"), "needs trials of one stage"),
        (("--validation", "fold"), "folds"),
        (("--objective", "loss"), "likelihood"),
        (("--select", "worst"), "--select must be ensemble, best or the number of a trial"),
        (("--select", "ensemble", "--space", "rmt+taskres"), "several stages"),
    ],
)
def test_validation_and_selection_are_checked_first(
    options: tuple[str, ...], expected: str
) -> None:
    given = options if "--space" in options else ("--space", "taskres", *options)
    (problem,) = configure(given).problems()
    assert expected in problem


def test_a_cross_validation_is_a_sweep_per_fold(tmp_path: Path) -> None:
    for name in ("jay", "wren"):
        for number in range(5):
            paint(tmp_path / name / f"{number}.png", len(name), number)
    own = ["--space", "taskres", "--dataset", f"folder:{tmp_path}", "--test-folds", "5"]
    config = configure([*own, "--shots", "all", "--name", "birds"])
    assert config.problems() == []
    assert config.task.shots == (4,)  # all but the fold's
    folds = per_fold(config)
    assert [fold.name for fold in folds] == [f"birds-fold{number}" for number in range(1, 6)]
    assert [fold.task.datasets for fold in folds] == [
        (f"folder:{tmp_path}#fold{number}of5",) for number in range(1, 6)
    ]
    assert not any(fold.test_folds for fold in folds)
    assert all(fold.problems() == [] for fold in folds)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--test-folds", "5"], "needs one data set of your own"),
        (
            ["--test-folds", "1", "--dataset", "folder:a"],
            "--test-folds must be between 2 and 100, got 1",
        ),
        (["--test-folds", "2", "--dataset", "folder:a", "--shots", "1,2"], "one number of shots"),
        (["--test-folds", "2", "--dataset", "folder:a", "--per-task"], "--per-task cannot be used"),
    ],
)
def test_a_cross_validation_that_is_none(options: list[str], problem: str) -> None:
    assert any(problem in found for found in configure(options).problems())


def test_a_cross_validation_is_resumed_as_it_was_started() -> None:
    said = read_request(["--resume", "birds", "--test-folds", "2"]).problems
    assert any("Run the first command again" in problem for problem in said)
