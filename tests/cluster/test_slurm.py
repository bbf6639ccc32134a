"""The Slurm script: its syntax, and a sweep with srun and scontrol replaced.

The replacements start both "nodes" of the job on this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.servers import free_port

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "slurm.sh"

SRUN = """#!/bin/bash
printf '%s\\n' "auth=$RAY_AUTH_MODE token=${#RAY_AUTH_TOKEN} $*" >>"$CALLS"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = "#!/bin/bash\nprintf '%s\\n' 127.0.0.1 other\n"


def test_it_is_a_script_without_faults() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SCRIPT], check=True)
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    settings = [i for i, line in enumerate(lines) if line.startswith("#SBATCH ")]
    assert settings
    assert max(settings) < first  # sbatch ignores the others


@pytest.mark.slow
@pytest.mark.timeout(2500)
def test_a_sweep_on_two_nodes(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    calls = tmp_path / "calls"
    job = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "1",
        "PROJECT": str(ROOT),
        "VENV": sys.prefix,
        "STORAGE": str(tmp_path / "sweeps"),
        "RAY_PORT": str(free_port()),
        "CALLS": str(calls),
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    options = "--space taskres --shots 2 --trials 2 --seeds 1 --eval-seeds 1 --no-report --name s"
    command = ["bash", str(SCRIPT), *options.split()]
    # Stopped before the time limit, and submitted again.
    with subprocess.Popen(
        command, env=os.environ | job, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as stopped:
        while not (tmp_path / "sweeps/s/sweep.json").exists():
            assert stopped.poll() is None
            time.sleep(0.1)
        time.sleep(1)
        stopped.send_signal(signal.SIGTERM)
        said, _ = stopped.communicate(timeout=300)
    assert stopped.returncode == 130, said
    assert "Nothing is lost" in said
    calls.unlink()
    (tmp_path / "sweeps/ray-7.log").unlink()
    done = subprocess.run(
        command, env=os.environ | job, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    log = (tmp_path / "sweeps/ray-7.log").read_text()
    assert "Trials: 2 complete" in done.stdout
    assert len(list((tmp_path / "sweeps/s/trials").glob("*/result.json"))) == 2
    assert "winner" in json.loads((tmp_path / "sweeps/s/evaluation.json").read_text())
    head, worker = calls.read_text().splitlines()
    assert head.startswith("auth=token token=64 --nodes=1 --ntasks=1 --nodelist=127.0.0.1 ")
    assert "ray start --head --block" in head
    assert worker.startswith("auth=token token=64 --nodes=1 --ntasks=1 --exclude=127.0.0.1 ")
    assert f"ray start --block --address=127.0.0.1:{job['RAY_PORT']}" in worker
    assert log.count("Ray runtime started") == 2
    left = subprocess.run(["pgrep", "-f", job["RAY_PORT"]], capture_output=True, check=False)
    assert left.stdout == b"", "Ray is still running"
