"""The launcher file for on-premise machines, used on simulated hosts: `ray up`, a sweep with
failures, `ray down`.

The hosts are a user's laptop, which also runs the object store, a head and two workers. They share
no disk.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.hosts import ROOT, Hosts, why_not
from tests.cluster.launcher_file import edited

FILE = "cluster/on-premise.yaml"
LAUNCHER = (ROOT / FILE).read_text(encoding="utf-8")
SWEEP = """python -m search.run --space rmt --shots 4 --name test --eval-seeds 1 --device cpu
 --address auto --storage $STORAGE/sweeps --trials"""
WORKERS = ("w1", "w2")

# The machine has no other network; packages come from the environment in which the tests run.
NEW_MACHINE = f"""
ln -s {shlex.quote(sys.prefix)} ~/venv
printf '%s\\n' '[install]' 'no-index = true' 'no-build-isolation = false' > /etc/pip.conf
"""
NEW_LAPTOP = """
cp /etc/ssh/test_host_key ~/.ssh/id_ed25519
printf '%s\\n' 'source ~/venv/bin/activate' 'export RAY_UP_enable_autoscaler_v2=0' >> ~/.bashrc
mkdir ~/.aws
printf '%s\\n' '[default]' 'aws_access_key_id = me' 'aws_secret_access_key = x' > ~/.aws/credentials
source ~/venv/bin/activate
setsid moto_server -H 0.0.0.0 -p 9000 >~/moto.log 2>&1 </dev/null &
ray get-auth-token --generate >/dev/null && chmod 600 ~/.ray/auth_token
until curl -fsS -X PUT http://localhost:9000/few-shot; do sleep 0.2; done
"""
WAIT_FOR_WORKERS = """
import time, ray
ray.init("auto", log_to_driver=False, logging_level="ERROR")
while {n["NodeManagerHostname"] for n in ray.nodes() if n["Alive"]} < {"head", "w1", "w2"}:
    time.sleep(0.5)
"""
SHOW_RESULTS = """
import json, os
from trainables.core.storage import open_storage
trials = open_storage(os.environ["STORAGE"] + "/sweeps/test").child("trials")
names = [name for name in trials.files() if name.endswith("/result.json")]
print(json.dumps({name.split("/")[0]: json.loads(trials.read(name)) for name in names}))
"""


class Cluster:
    """Commands of the user on the laptop, and failures of the hosts."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        for name in hosts.address:
            hosts.run(name, NEW_MACHINE)
        hosts.run("laptop", NEW_LAPTOP)
        address = hosts.address
        text = edited(
            LAUNCHER,
            {
                1: f"head_ip: {address['head']}",
                2: f"worker_ips: [{', '.join(address[worker] for worker in WORKERS)}]",
                3: "ssh_user: root",
                4: f"export STORAGE=s3://few-shot AWS_ENDPOINT_URL=http://{address['laptop']}:9000",
            },
        )
        hosts.run("laptop", f"printf %s {shlex.quote(text)} > {shlex.quote(str(ROOT / FILE))}")

    def ray(self, command: str) -> None:
        """Run `ray ...` on the laptop, in the repository's folder."""
        self.hosts.run("laptop", f"cd {shlex.quote(str(ROOT))} && ray {command}", timeout=180)

    def up(self) -> None:
        """Wait until all workers have joined."""
        self.ray(f"up -y {FILE}")
        self.hosts.run("head", f"python -c {shlex.quote(WAIT_FOR_WORKERS)}", timeout=120)

    @contextmanager
    def sweep(self, trials: int) -> Iterator[subprocess.Popen[bytes]]:
        """Start or resume the sweep; stop waiting for it on exit."""
        command = f"{' '.join(SWEEP.split())} {trials} >> sweep.log 2>&1"
        arguments = f"cd {shlex.quote(str(ROOT))} && ray exec {FILE} {shlex.quote(command)}"
        process = subprocess.Popen(
            self.hosts.command("laptop", arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def log(self) -> str:
        return self.hosts.run("head", "cat ~/sweep.log", check=False).stdout

    def ended(self) -> list[int]:
        """Trials in the order in which they finished."""
        return [int(n) for n in re.findall(r"^trial +(\d+) (?:complete|pruned)", self.log(), re.M)]

    def is_training(self, worker: str) -> bool:
        return self.has(worker, r"^ray::\w*Trainable")

    def has(self, host: str, process: str) -> bool:
        return self.hosts.run(host, f"pgrep -f '{process}'", check=False).returncode == 0

    def results(self) -> dict[int, dict[str, Any]]:
        """Files in the storage."""
        shown = self.hosts.run("head", f"python -c {shlex.quote(SHOW_RESULTS)}").stdout
        return {int(number): result for number, result in json.loads(shown).items()}

    def mlflow(self, question: str, **body: object) -> Any:
        """JSON that MLflow returns to the user."""
        password = self.hosts.run("laptop", PASSWORD).stdout.strip()
        data = shlex.quote(json.dumps(body))
        url = shlex.quote(f"{self.server}/{question}")
        options = f"-fsS -u admin:{password} -H 'Content-Type: application/json' -d {data}"
        return json.loads(self.hosts.run("laptop", f"curl {options} {url}").stdout)

    def senders(self) -> set[str]:
        """Addresses of the machines that have uploaded trial artifacts."""
        log = self.hosts.run("head", "cat ~/mlflow/server.log").stdout
        return set(re.findall(r"([\d.]+):\d+ - \"PUT [^\"]*/artifact\S*\.safetensors", log))

    def refusal(self, options: str) -> str:
        """Status that MLflow returns to an unauthenticated client."""
        command = f"curl -s -o /dev/null -w '%{{http_code}}' {options}"
        return self.hosts.run("laptop", command).stdout

    @property
    def server(self) -> str:
        return f"http://{self.hosts.address['head']}:5000/api/2.0"


PASSWORD = re.findall(r"^#   (printf mlflow: .*)$", LAUNCHER, re.M)[0]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(reason)
    missing = [name for name in ("moto", "flask_wtf") if find_spec(name) is None]
    if missing:
        pytest.skip(f"these packages are needed: {', '.join(missing)}")
    with Hosts(tmp_path, ["laptop", "head", *WORKERS]) as hosts:
        yield Cluster(hosts)


def wait_until(cluster: Cluster, condition: Callable[[], bool], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"the sweep did not get there:\n{cluster.log()}")
        time.sleep(0.5)


def in_mid_sweep(cluster: Cluster) -> None:
    """Wait until both workers run a trial and some trials have finished."""
    wait_until(cluster, lambda: all(map(cluster.is_training, WORKERS)), 90)
    wait_until(cluster, lambda: len(cluster.ended()) >= 2, 60)


def check_books(cluster: Cluster, trials: int) -> None:
    """Check that no trial is lost or repeated, and that MLflow has the same trials."""
    results = cluster.results()
    trials += 1  # trial 0 cannot flip a bit with four shots: it is not trained and does not count
    assert sorted(results) == list(range(trials))
    assert sorted(cluster.ended()) == list(range(1, trials))
    experiments = cluster.mlflow("mlflow/experiments/search", max_results=10)["experiments"]
    identifiers = [experiment["experiment_id"] for experiment in experiments]
    runs = cluster.mlflow("mlflow/runs/search", experiment_ids=identifiers)["runs"]
    tags = [{tag["key"]: tag["value"] for tag in run["data"]["tags"]} for run in runs]
    states = {
        int(tag["search.trial"]): tag["search.state"] for tag in tags if "search.trial" in tag
    }
    assert states == {number: result["state"] for number, result in results.items()}
    assert len(runs) == trials + 1  # and the sweep's own

    assert cluster.refusal(f"{cluster.server}/mlflow/experiments/search?max_results=1") == "401"
    upload = f"{cluster.server}/mlflow-artifacts/artifacts/{identifiers[0]}/file"
    assert cluster.refusal(f"-T /etc/hostname {upload}") == "401"
    assert cluster.refusal(f"-u admin:password -T /etc/hostname {upload}") == "401"


@pytest.mark.hosts
@pytest.mark.timeout(900)
def test_a_worker_dies(cluster: Cluster) -> None:
    trials = 8
    cluster.up()
    with cluster.sweep(trials) as sweep:
        in_mid_sweep(cluster)
        cluster.hosts.run("w1", "pkill -9 -x raylet")
        try:
            assert sweep.wait(timeout=400) == 0, cluster.log()
        except subprocess.TimeoutExpired:
            pytest.fail(f"the sweep did not end:\n{cluster.log()}")
    check_books(cluster, trials)
    # Workers upload what trials have learned; the driver does it if one has just died, and at
    # the end for the winner.
    assert cluster.senders() & {cluster.hosts.address[worker] for worker in WORKERS}
    cluster.ray(f"down -y {FILE}")
    assert not cluster.has("head", "gcs_server")


@pytest.mark.hosts_long
@pytest.mark.timeout(1200)
def test_a_cut_cable_and_a_power_cut(cluster: Cluster) -> None:
    trials = 30
    cluster.up()
    with cluster.sweep(trials) as sweep:
        in_mid_sweep(cluster)
        cluster.hosts.cut("w1")
        time.sleep(30)
        cluster.hosts.heal("w1")
        before = len(cluster.ended())
        assert before < trials - 4, "the cable came back too late to test anything"
        wait_until(cluster, lambda: len(cluster.ended()) >= before + 2, 180)

        cluster.hosts.power_off("head")
        assert sweep.wait(timeout=60) != 0
        cluster.hosts.power_on("head")
    assert len(cluster.ended()) < trials, "the power cut came too late to test anything"
    cluster.up()
    with cluster.sweep(trials) as sweep:
        assert sweep.wait(timeout=300) == 0, cluster.log()
    check_books(cluster, trials)

    cluster.ray(f"down -y {FILE}")
    assert not cluster.has("head", "gcs_server")
    wait_until(cluster, lambda: not any(cluster.has(w, "raylet/raylet") for w in WORKERS), 120)
