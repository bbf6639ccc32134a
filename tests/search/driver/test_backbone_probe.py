"""The backbone's checks in a child process: what they report, also if the process dies."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from search.driver import backbone_probe
from search.driver.backbone_probe import BackboneProbe, BackboneProbeProcess
from search.driver.preflight import preflight
from search.options import configure
from spaces.registry import SPACES
from trainables.backbones.base import BackboneError
from trainables.backbones.registry import BACKBONES
from trainables.methods.base import TaskFacts

PAPER = SPACES["taskres"].build(TaskFacts("digits", 4, 40, "vit")).paper


@pytest.mark.parametrize(
    ("sent", "message"), [(signal.SIGKILL, "memory runs out"), (signal.SIGTERM, "SIGTERM")]
)
def test_a_process_that_is_killed_is_one_line(sent: signal.Signals, message: str) -> None:
    with BackboneProbeProcess("tiny") as probe:
        assert probe.facts().tower == "vit"
        os.kill(probe._child._process.pid, sent)
        time.sleep(0.2)
        problem = probe.check_methods(PAPER, [["zero", "one"]], 40)
        assert message in problem
        assert "\n" not in problem
        with pytest.raises(BackboneError, match="'tiny' could not be checked"):
            probe.facts()


def test_a_process_that_hangs_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone_probe, "_SECONDS", 0.5)
    with BackboneProbeProcess("tiny") as probe:
        probe.facts()
        os.kill(probe._child._process.pid, signal.SIGSTOP)
        assert "more than 0.5 s" in probe.check_methods(PAPER, [["zero", "one"]], 40)


def test_activation_and_preprocessing_are_stated_once_before_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(BACKBONES["tiny"], "model")
    with BackboneProbeProcess(f"{tmp_path}/model") as probe:
        facts = probe.facts()
    assert facts == BackboneProbe(f"{tmp_path}/model").facts()
    assert "plain GELU; images of 32 pixels" in facts.notices[0]
    assert BackboneProbe("tiny").facts().notices == ()
    plan = preflight(configure(["--space", "taskres", "--backbone", "model", "--shots", "1"]))
    assert [notice for notice in plan.notices if "GELU" in notice] == list(facts.notices)
