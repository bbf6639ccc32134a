"""`python -m tests.chaos --rounds 50`: the long form of the chaos suite."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.rounds import Undisturbed, plan, run_round
from tests.chaos.world import TARGETS
from tests.servers import postgresql_programs


def main() -> int:
    """Return 0 if all checks passed, otherwise 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50, help="how many (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first round; the next has the next one"
    )
    parser.add_argument(
        "--kinds", default=",".join(TARGETS), help="what is killed (default: %(default)s)"
    )
    parser.add_argument("--keep", type=Path, help="keep every round in this folder")
    given = parser.parse_args()
    kinds = given.kinds.split(",")
    if unknown := set(kinds) - set(TARGETS):
        parser.error(f"--kinds: there is no {', '.join(unknown)}")
    postgresql = "postgresql" in kinds and postgresql_programs() is not None
    if "postgresql" in kinds and not postgresql:
        print("PostgreSQL is left out: it is not installed.")
    folder = given.keep or Path(tempfile.mkdtemp(prefix="chaos-rounds-"))
    undisturbed = Undisturbed.run(folder / "undisturbed")
    reports = []
    for seed in range(given.seed, given.seed + given.rounds):
        with_postgresql = postgresql and seed % 3 == 0
        targets = [t for t in TARGETS if t in kinds and (t != "postgresql" or with_postgresql)]
        place = folder / f"round-{seed}"
        report = run_round(seed, place, undisturbed, plan(seed, targets), with_postgresql)
        reports.append(report)
        print(report, flush=True)
        for breach in report.breaches:
            print(f"  BREACH {breach}", flush=True)
        if not (report.breaches or given.keep):
            shutil.rmtree(place)
    breaches = sum(len(report.breaches) for report in reports)
    print(
        f"{len(reports)} rounds, {sum(len(r.kills) for r in reports)} kills, "
        f"{sum(r.trials for r in reports)} trials, {sum(r.lost for r in reports)} lost, "
        f"{sum(r.repeated for r in reports)} repeated"
        + (f", {breaches} BREACHES, see {folder}" if breaches else "")
    )
    if not (breaches or given.keep):
        shutil.rmtree(folder)
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
