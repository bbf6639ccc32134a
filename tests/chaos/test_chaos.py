"""Short forms of the chaos suite: one round by default, and two that hit every target."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos.rounds import Kill, Report, Undisturbed, Watch, plan, run_round
from tests.chaos.world import TARGETS
from tests.servers import postgresql_programs

pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings(
        "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning",
    ),
]

SHORT = (
    Kill("tracking", "trial 1", 0.2, down=3.0),
    Kill("worker", "trial 2", 0.2, down=0.0),
    Kill("gcs", "commit 4", 0.0, down=0.0),  # ends the driver, too
)
PLANS: dict[int, tuple[Kill, ...]] = {
    337: plan(337),
    188: plan(188, [target for target in TARGETS if target != "postgresql"]),
}
"""Seeds chosen so that all six targets are hit once each, with three deaths of a driver in
total."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed.run(tmp_path_factory.mktemp("calm") / "calm")


@pytest.fixture(scope="module")
def reports(
    tmp_path_factory: pytest.TempPathFactory, undisturbed: Undisturbed
) -> Iterator[dict[int, Future[Report]]]:
    """Run both rounds in parallel."""
    folder = tmp_path_factory.mktemp("chaos")
    with ThreadPoolExecutor() as pool:
        yield {
            seed: pool.submit(run_round, seed, folder / f"{seed}", undisturbed, kills, postgresql)
            for seed, kills in PLANS.items()
            if not (postgresql := _wants_postgresql(kills)) or postgresql_programs()
        }


def _wants_postgresql(kills: tuple[Kill, ...]) -> bool:
    return any(kill.target == "postgresql" for kill in kills)


def test_nothing_is_lost_in_a_short_round(undisturbed: Undisturbed, tmp_path: Path) -> None:
    report = run_round(0, tmp_path / "round", undisturbed, SHORT, postgresql=False, agents=False)
    assert not report.breaches, "\n".join(report.breaches)
    assert report.kills == SHORT
    assert report.lost == report.repeated == 0


def test_the_plans_hit_every_target() -> None:
    assert {kill.target for kills in PLANS.values() for kill in kills} == set(TARGETS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", PLANS)
def test_nothing_is_lost_and_nothing_is_repeated(
    reports: dict[int, Future[Report]], seed: int
) -> None:
    if seed not in reports:
        pytest.skip("PostgreSQL is not installed")
    report = reports[seed].result()
    assert not report.breaches, "\n".join(report.breaches)
    assert report.kills == PLANS[seed]
    assert report.lost == report.repeated == 0


def test_a_plan_follows_from_its_seed() -> None:
    assert [plan(seed) for seed in range(50)] == [plan(seed) for seed in range(50)]
    assert len({plan(seed) for seed in range(50)}) == 50


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    """Write the folder of a trial with a result and an artifact."""
    folder = tmp_path / "trials" / "000000"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    (folder / "artifact.safetensors").write_bytes(b"learned")
    return folder


@pytest.fixture
def watch(trial: Path) -> Watch:
    """The observer has seen the trial."""
    watch = Watch(trial.parents[1])
    assert watch.look()
    assert not watch.look()
    assert (watch.lost, watch.repeated) == (set(), set())
    return watch


@pytest.mark.parametrize("name", ["result.json", "artifact.safetensors"])
def test_the_watch_sees_what_is_lost(watch: Watch, trial: Path, name: str) -> None:
    (trial / name).unlink()
    watch.look()
    assert (watch.lost, watch.repeated) == ({0}, set())


@pytest.mark.parametrize("name", ["result.json", "artifact.safetensors"])
def test_the_watch_sees_the_same_content_written_again(
    watch: Watch, trial: Path, name: str
) -> None:
    new = trial / "new"
    new.write_bytes((trial / name).read_bytes())
    new.rename(trial / name)
    watch.look()
    assert (watch.lost, watch.repeated) == (set(), {0})


def test_the_watch_sees_training_after_the_commit(watch: Watch, trial: Path) -> None:
    (trial / "checkpoint.safetensors").write_bytes(b"half-way")
    watch.look()
    assert watch.repeated == {0}


def test_the_watch_sees_half_a_result(tmp_path: Path) -> None:
    folder = tmp_path / "trials" / "000000"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text('{"number": ')
    watch = Watch(tmp_path)
    watch.look()
    assert watch.lost == {0}
