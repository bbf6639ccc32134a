"""The launcher file passes Ray's check and ours, and every check can fail."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jsonschema import ValidationError

from tests.cluster.launcher_file import problems

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")


def test_nothing_is_wrong_with_the_launcher_file() -> None:
    assert problems(TEXT, ROOT) == []


def test_a_user_edits_two_lines() -> None:
    marked = [line for line in TEXT.splitlines() if re.search(r"[^ #] +.*# \(\d\)$", line)]
    assert [line.strip().partition(":")[0] for line in marked] == ["region", "ImageId"]


def test_it_says_what_it_does_not_know() -> None:
    assert "NEVER been run on a real cloud account" in TEXT


BROKEN = [
    ("  region:", "  regoin:", "unknown provider key: regoin"),
    ("  region: us-west-2", "  region: somewhere", "region is missing or malformed"),
    ("  region: us-west-2  # (1)\n", "", "region is missing or malformed: None"),
    ("InstanceMarketOptions:", "InstanceMarketOption:", "unknown key in node_config of worker"),
    ("ImageId: *image", 'ImageId: ""', "worker has no ImageId"),
    ('{"CPU": 0}', '{"CPU": 2}', "the head must offer 0 CPUs"),
    (
        "      InstanceType: m7i.large",
        "      InstanceType: m7i.large\n      InstanceMarketOptions: {MarketType: spot}",
        "the head must not be a spot instance",
    ),
    ("    min_workers: 0", "    min_workers: 1", "min_workers of worker must be 0"),
    ("    max_workers: 4\n", "", "max_workers of worker must be given"),
    ("MarketType: spot", "MarketType: capacity-block", "worker must be a spot instance"),
    ('MaxPrice: "0.60"', "ValidUntil: never", "worker must have a MaxPrice"),
    ("idle_timeout_minutes: 5", "idle_timeout_minutes: 0", "idle_timeout_minutes"),
    (" --num-cpus=0", "", "lacks --num-cpus=0"),
    (" --autoscaling-config=~/ray_bootstrap_config.yaml", "", "lacks --autoscaling-config"),
    ("ray start --head", "ray start", "lacks --head"),
    ("--address=$RAY_HEAD_IP:6379", "", "lacks --address"),
    (
        "export RAY_AUTH_MODE=token; ulimit",
        "ulimit",
        "token authentication is off in the start command: head",
    ),
    (
        "export RAY_AUTH_MODE=token MLFLOW",
        "export MLFLOW",
        "token authentication is off in the start command: worker",
    ),
    ("'export RAY_AUTH_MODE=token'", "", "token authentication is off for drivers"),
    (" MLFLOW_TRACKING_URI=http://$RAY_HEAD_IP:5000", "", "workers do not know MLflow's address"),
    ("/health ||", "/health;", "MLflow's start command lacks /health"),
    ("MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", "", "lacks MLFLOW_SERVER_ENABLE_JOB_EXECUTION"),
    ("setsid nohup ", "", "MLflow's start command lacks setsid"),
    ("--workers 1", "--workers 10", "MLflow's start command lacks --workers 1"),
    ("sqlite:///mlflow.db", "./mlruns", "MLflow's start command lacks --backend-store-uri sqlite:"),
    (" --artifacts-destination ./artifacts", "", "lacks --artifacts-destination"),
    (" </dev/null", "", "MLflow's start command lacks </dev/null"),
    ("server.log 2>&1 </dev/null &)", "server.log 2>&1 </dev/null &", "not a shell command"),
    ("few-shot-search: .\n", "few-shot-search: ./absent\n", "does not exist: ./absent"),
    ("few-shot-search: .\n", "few-shot-search: ..\n", "must be in the repository or under ~/: .."),
    ("/home/ubuntu/few-shot-search:", "/opt/few-shot-search:", "must be under /home"),
    ("auth_token: ~/.ray/auth_token", "token: ~/.ray/auth_token", "the token must be shipped"),
    ("install -q -e ~/few-shot-search", "install -q torch", "the repository must be shipped"),
    (
        "    GroupName: few-shot-search",
        "    GroupName: few-shot-search\n    IpPermissions:\n"
        '      - {FromPort: 0, ToPort: 1, IpRanges: [{CidrIp: "0.0.0.0/0"}]}',
        "opens a port to the world",
    ),
    ("--include-dashboard=false", "--dashboard-host=0.0.0.0", "opens a port to the world"),
    ("export RAY_AUTH_MODE=token; ulimit", "export RAY_AUTH_TOKEN=abc; ulimit", "holds a secret"),
    ("sqlite:///mlflow.db", "postgresql://me:hush@db/mlflow", "holds a secret"),
    ("cluster_name:", f"# {'AKIA' + 'Q' * 16}\ncluster_name:", "holds a secret"),
    ("install -q -e ~/few", "install -q torch==2.0.0 -e ~/few", "torch==2.0.0 is not what"),
    ("cluster_name:", "# rayproject/ray:2.50.0-py311\ncluster_name:", "the image has ray 2.50.0"),
    ("--gpus-per-trial 0.25", "--gpu-per-trial 0.25", "has no option --gpu-per-trial"),
    ("--address auto", "", "the sweep that is shown lacks --address auto"),
    ("'python -m search.run", "'true", "does not say how to run a sweep"),
]


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    BROKEN,
    ids=[complaint for _, _, complaint in BROKEN],
)
def test_every_check_can_fail(right: str, wrong: str, complaint: str) -> None:
    assert right in TEXT
    found = problems(TEXT.replace(right, wrong), ROOT)
    assert any(complaint in problem for problem in found), found


def test_a_second_ray_start_is_noticed() -> None:
    lines = TEXT.replace("  - ray stop\n", "  - ray stop\n  - ray start --head\n", 1)
    assert any("one `ray start`" in problem for problem in problems(lines, ROOT))


@pytest.mark.parametrize(
    ("right", "wrong", "error"),
    [
        ("idle_timeout_minutes:", "idle_timeout:", ValidationError),
        ("head_node_type: head", "head_node_type: leader", ValueError),
        ("max_workers: 4\nidle", "max_workers: -1\nidle", ValidationError),
    ],
)
def test_rays_own_check_is_asked(right: str, wrong: str, error: type[Exception]) -> None:
    assert right in TEXT
    with pytest.raises(error):
        problems(TEXT.replace(right, wrong), ROOT)
