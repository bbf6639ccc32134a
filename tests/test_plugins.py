"""The plugin in docs/plugins.md is complete: the project works with it, in every process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from search.core.config import SweepConfig
from search.core.problems import UsageError
from search.core.sweep_folder import SweepFolder, SweepRecord
from search.driver import preflight as preflight_module
from search.driver.backbone_probe import BackboneProbe
from search.driver.preflight import preflight
from search.options import configure
from spaces.registry import SPACES
from tests.test_contributing import shown
from trainables.core.plugins import ENVIRONMENT, PluginError, plugin_sources, use_plugins
from trainables.core.storage import LocalStorage
from trainables.data.registry import DATASETS, DataSource
from trainables.encoded_task import EncodedTask
from trainables.methods.registry import METHODS
from trainables.trial import TaskSpec
from trainables.trial_run import TrialRun

ROOT = Path(__file__).parent.parent


def source() -> str:
    """The plugin: the method of CONTRIBUTING.md with the tables of docs/plugins.md."""
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    (tables,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return f"{shown()}\n{tables}"


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is restored after each test."""
    monkeypatch.setenv(ENVIRONMENT, "")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_methods.py"
    path.write_text(source(), encoding="utf-8")
    return path


def test_a_plugins_entries_are_like_all_others(file: Path, tmp_path: Path) -> None:
    assert "logit-bias" not in METHODS
    options = ["--plugin", str(file), "--space", "logit-bias", "--dataset", "my-digits"]
    config = configure([*options, "--set", "penalty=0.1", "--shots", "1"])
    assert config.problems() == []
    assert {"logit-bias"} <= {*METHODS} & {*SPACES}
    assert "my-digits" in DATASETS
    space = config.general_space
    assert space.first_parameters.keys() == {"lr", "epochs"}
    task = TaskSpec(("my-digits",), "tiny", (1,), (1,))
    run = TrialRun(space.first, task, EncodedTask("tiny", "cpu", DataSource()))
    assert run.advance().values[0] >= 0
    with pytest.raises(UsageError, match=r"leak.*Known: .*penalty"):
        raise UsageError(configure([*options, "--set", "leak=1"]).problems())


def test_its_code_is_part_of_the_sweep(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Probe(BackboneProbe):
        def __enter__(self) -> Probe:
            return self

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(preflight_module, "BackboneProbeProcess", Probe)
    options = ["--plugin", str(file), "--shots", "1", "--storage", str(tmp_path)]
    plan = preflight(configure([*options, "--space", "logit-bias"]), trial_write=False)
    assert len(plan.fingerprints["plugin.my_methods"]) == 64
    assert plan.config.plugin == (str(file),)
    other = preflight(configure([*options, "--space", "taskres"]), trial_write=False)
    assert not any(name.startswith("plugin") for name in other.fingerprints)
    assert SweepConfig.from_dict(plan.config.to_dict()) == plan.config


def test_other_machines_receive_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without the file, here a process with another environment."""
    use_plugins((str(file),))
    program = (
        "import json, sys\n"
        "from trainables.core.plugins import receive_plugins\n"
        "from trainables.methods.registry import METHODS\n"
        "receive_plugins(json.load(sys.stdin))\n"
        "print(METHODS['logit-bias'].Config())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(plugin_sources()),
        env=os.environ | {ENVIRONMENT: ""},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout == "LogitBiasConfig(prompts='paper', penalty=0.001)\n"


_SCRIPT = """
import sys
import ray
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
from search import Sweep
plugin, storage, photo = sys.argv[1:]
sweep = Sweep(
    plugin=plugin, storage=storage, name="mine", space="logit-bias", dataset="my-digits",
    shots=2, seeds=1, eval_seeds=1, trials=2, tracking_uri="none", no_report=True,
)
print(sweep.run(quiet=True).states["COMPLETE"], sweep.load().predict([photo])[0])
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_in_the_workers_of_a_ray_that_was_started_without_it(
    file: Path, tmp_path: Path
) -> None:
    """Its workers have neither the variable nor the file's name, as on other machines: they receive
    the file for trials and evaluation. Then the model is used by other processes."""
    photo = tmp_path / "photo.png"
    Image.new("RGB", (8, 8), "white").save(photo)

    def call(*words: str, plugin: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            env=os.environ | {ENVIRONMENT: plugin, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"},
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    storage = str(tmp_path / "sweeps")
    states, name = call("-c", _SCRIPT, str(file), storage, str(photo), plugin="").split()
    assert states == "2"
    export = tmp_path / "export"
    where = ("--storage", storage)
    to = ("--format", "artifact", "--output", str(export))
    call("-m", "search.export", "mine", *to, *where, plugin=str(file))
    for model in ("mine", str(export)):
        found = call("-m", "search.predict", model, str(photo), *where, plugin=str(file))
        assert name.strip("[]'") in found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1 / 0", "failed (ZeroDivisionError: division by zero). Correct its code."),
        ("import nowhere", "failed (ModuleNotFoundError: No module named 'nowhere')"),
        ("def f(:", "failed (SyntaxError"),
        ("x = 1", "must have one of the tables METHODS, SPACES, DATASETS"),
        (None, "must be a Python file that can be read"),
    ],
)
def test_mistakes(text: str | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError) as caught:
        configure(["--plugin", str(path)])
    assert told in caught.value.problems[0]


def test_a_file_that_changes_is_run_again(tmp_path: Path) -> None:
    """In a notebook, between two sweeps."""
    path = tmp_path / "changing.py"
    for name in ("one", "other"):
        path.write_text(f"METHODS = {{'{name}': None}}")
        use_plugins((str(path),))
        assert name in METHODS
    assert "one" not in METHODS


def test_files_have_different_names(tmp_path: Path) -> None:
    files = [tmp_path / folder / "mine.py" for folder in ("a", "b")]
    for number, path in enumerate(files):
        path.parent.mkdir()
        path.write_text(f"METHODS = {{'method-{number}': None}}")
    with pytest.raises(PluginError, match=r"different names, got .*a/mine\.py and .*b/mine\.py"):
        use_plugins(tuple(map(str, files)))


def test_names_must_be_new(tmp_path: Path) -> None:
    path = tmp_path / "twice.py"
    path.write_text("METHODS = {'taskres': None}")
    use_plugins((str(path),))
    with pytest.raises(PluginError, match=r"'taskres' in METHODS of '\w+twice' is taken"):
        list(METHODS)


def test_an_installed_package(tmp_path: Path, file: Path) -> None:
    """Its entry point is enough."""
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fewshot_clip_search]\nmine = my_methods\n")
    program = "from spaces.registry import SPACES\nprint('logit-bias' in SPACES)"
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True\n"


def test_it_passes_the_conformance_suite(file: Path) -> None:
    suite = ("tests/conformance", "tests/spaces/test_spaces.py", "-k", "logit-bias")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *suite],
        cwd=ROOT,
        env=os.environ | {ENVIRONMENT: str(file)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 20


def test_a_record_makes_no_code_run(file: Path, tmp_path: Path) -> None:
    """A sweep with a plugin is resumed by naming it again."""
    ran = tmp_path / "ran"
    file.write_text(f"{source()}\nfrom pathlib import Path\nPath({str(ran)!r}).touch()")
    storage = ["--storage", str(tmp_path)]
    config = replace(configure(["--space", "taskres", *storage]), name="mine", plugin=(str(file),))
    SweepFolder(LocalStorage(tmp_path / "mine")).write_record(SweepRecord("id", config, {}))
    with pytest.raises(UsageError, match=re.escape(f"Add --plugin {file}.")):
        configure(["--resume", "mine", *storage])
    assert not ran.exists()
    assert configure(["--resume", "mine", "--plugin", str(file), *storage]) == config
    assert ran.exists()
