"""The launcher files pass Ray's check and ours, and every check can fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonschema import ValidationError

from tests.cluster.launcher_file import edited, marked, problems

ROOT = Path(__file__).parents[2]
TEXTS = {
    name: (ROOT / f"{name}.yaml").read_text(encoding="utf-8")
    for name in ("cluster", "cluster/gcp", "cluster/on-premise")
}
TEXT = TEXTS["cluster"]


@pytest.mark.parametrize("name", TEXTS)
def test_nothing_is_wrong_with_the_launcher_files(name: str) -> None:
    assert problems(TEXTS[name], ROOT) == []


@pytest.mark.parametrize(
    ("name", "subjects"),
    [
        ("cluster", ["region:", "export STORAGE="]),
        ("cluster/gcp", ["project_id:", "export STORAGE="]),
        ("cluster/on-premise", ["head_ip:", "worker_ips:", "ssh_user:", "export STORAGE="]),
    ],
)
def test_what_a_user_edits(name: str, subjects: list[str]) -> None:
    lines = marked(TEXTS[name])
    assert len(lines) == len(subjects)
    for number, (line, subject) in enumerate(zip(lines, subjects, strict=True), 1):
        assert line.startswith(subject)
        assert f"# ({number})" in line
        assert f"{subject}mine  # ({number})" in edited(TEXTS[name], {number: f"{subject}mine"})


def test_editing_needs_the_mark() -> None:
    with pytest.raises(ValueError, match="not exactly one"):
        edited(TEXT, {7: "x"})


@pytest.mark.parametrize("name", ["cluster", "cluster/gcp"])
def test_they_say_what_they_do_not_know(name: str) -> None:
    assert "NEVER been run on a real cloud account" in " ".join(TEXTS[name].split("\n# "))


BROKEN = [
    ("  region:", "  regoin:", "unknown key: provider.regoin"),
    ("  region: us-west-2", "  region: somewhere", "region is missing or malformed"),
    ("  region: us-west-2  # (1)\n", "", "region is missing or malformed: None"),
    ("      IamInstanceProfile: {Name: few-shot-search-worker}\n", "", "worker has no Iam"),
    ("InstanceMarketOptions:", "InstanceMarketOption:", "worker.node_config.InstanceMarketOption"),
    (
        "      MarketType: spot",
        "      MarketTyp: spot",
        'parameter in InstanceMarketOptions: "MarketT',
    ),
    ("{VolumeSize: 150", "{VolumeSiz: 150", 'parameter in BlockDeviceMappings[0].Ebs: "VolumeSiz"'),
    ("InstanceType: g6.xlarge", "InstanceType: m7i.large", "worker has no GPU"),
    ("InstanceType: g6.xlarge", "InstanceType: g6.xxlarge", "no machine for worker: g6.xxlarge"),
    ("InstanceType: m7i.large", "InstanceTyp: m7i.large", "no machine for head: None"),
    ("max_workers: 4\nidle", "min_workers: 2\nmax_workers: 4\nidle", "unknown key: min_workers"),
    ("max_workers: 4\nidle", "max_workers: 0\nidle", "at most that of the cluster"),
    ("max_workers: 4\nidle", "max_workers: 4\nmax_workers: 9\nidle", "twice: max_workers"),
    ("DeviceName: /dev", "DeviceName: /a\n          DeviceName: /dev", "twice: DeviceName"),
    ("ssh_user: ubuntu", "ssh_user: ubuntu\n  ssh_private_key: ~/no.pem", "auth.ssh_private_key"),
    ("# budget alarm in AWS", "#", "the comments must say: budget alarm in AWS"),
    ("--port=6379", "--port=6380", "the start command of the head lacks --port=6379"),
    ("  - ray stop\n  - >-\n    ulimit", "  - >-\n    ulimit", "on the worker must be stopped"),
    ("  - ray stop\n  - >-\n    curl", "  - >-\n    curl", "on the head must be stopped"),
    ("--host 0.0.0.0", "--host 127.0.0.1", "command lacks --host 0.0.0.0 --port 5000"),
    ("timeout 120 sh -c", "true sh -c", "must fail where MLflow does not start"),
    ('rsync_filter: [".gitignore"]\n', "", "would be shipped: rsync_filter"),
    ('rsync_exclude: ["**/.git", "**/.git/**"]\n', "", "would be shipped: rsync_exclude"),
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
    ("    export RAY_AUTH_MODE=token\n", "", "token authentication is off: head"),
    ("'source ~/cluster.env'", "", "token authentication is off: worker"),
    ("${RAY_HEAD_IP:-127.0.0.1}", "127.0.0.1", "MLflow's address is not known: worker"),
    ("${RAY_HEAD_IP:-127.0.0.1}", "$RAY_HEAD_IP", "MLflow's address is not known: head"),
    ("STORAGE=s3://YOUR-BUCKET", "STORAGE=/mnt/sweeps", "STORAGE must be a bucket: /mnt/sweeps"),
    ("cat - ~/.ray/auth_token |", "", "MLflow's password must depend on the token"),
    ("_PASSWORD=$(derived mlflow)\n    END", "_PASSWORD=\n    END", "user and password are not"),
    ("--app-name basic-auth ", "", "MLflow's start command lacks --app-name basic-auth"),
    ("(derived flask)", "(derived mlflow)", "lacks MLFLOW_FLASK_SERVER_SECRET_KEY"),
    ("'mlflow[auth]'", "mlflow", "MLflow's log-in must be installed"),
    ("  - chmod 600 ~/.ray/auth_token\n", "", "the token must be readable by its owner only"),
    ("/health ||", "/health;", "MLflow's start command lacks /health"),
    ("MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", "", "lacks MLFLOW_SERVER_ENABLE_JOB_EXECUTION"),
    ("setsid nohup ", "", "MLflow's start command lacks setsid"),
    ("--workers 1", "--workers 10", "MLflow's start command lacks --workers 1"),
    ("sqlite:///mlflow.db", "./mlruns", "MLflow's start command lacks --backend-store-uri sqlite:"),
    ("-destination $STORAGE", "-destination .", "lacks --artifacts-destination $STORAGE/"),
    (" </dev/null", "", "MLflow's start command lacks </dev/null"),
    ("server.log 2>&1 </dev/null &)", "server.log 2>&1 </dev/null &", "not a shell command"),
    ("few-shot-search: .\n", "few-shot-search: ./absent\n", "does not exist: ./absent"),
    ("few-shot-search: .\n", "few-shot-search: ..\n", "must be in the repository or under ~/: .."),
    ("  ~/few-shot-search: .", "  /opt/few-shot-search: .", "must be under ~/: /opt"),
    ("auth_token: ~/.ray/auth_token", "token: ~/.ray/auth_token", "the token must be shipped"),
    ("install -q -e ~/few-shot-search", "install -q torch", "the repository must be shipped"),
    (
        "    GroupName: few-shot-search",
        "    GroupName: few-shot-search\n    IpPermissions:\n"
        '      - {FromPort: 0, ToPort: 1, IpRanges: [{CidrIp: "0.0.0.0/0"}]}',
        "opens a port to the world",
    ),
    ("--include-dashboard=false", "--dashboard-host=0.0.0.0", "opens a port to the world"),
    ("RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN=abc", "holds a secret"),
    ("PASSWORD=$(derived mlflow)", "PASSWORD=hush", "holds a secret"),
    ("sqlite:///mlflow.db", "postgresql://me:hush@db/mlflow", "holds a secret"),
    ("cluster_name:", f"# {'AKIA' + 'Q' * 16}\ncluster_name:", "holds a secret"),
    ("install -q -e ~/few", "install -q torch==2.0.0 -e ~/few", "torch==2.0.0 is not what"),
    ("cluster_name:", "# rayproject/ray:2.40.0-py311\ncluster_name:", "the image has ray 2.40.0"),
    ("--gpus-per-trial 0.25", "--gpu-per-trial 0.25", "has no option --gpu-per-trial"),
    ("--address auto", "", "the sweep that is shown lacks --address auto"),
    ("'python -m search.run", "'true", "does not say how to run a sweep"),
]
BROKEN_GCP = [
    ("  project_id: YOUR-PROJECT  # (1)\n", "", "project_id is missing"),
    ("  region: us-central1\n", "  region: us-west-2\n", "region is missing or malformed"),
    ("zone: us-central1-a", "zone: us-east1-a", "availability_zone must be one of the region's"),
    ("  availability_zone:", "  zone:", "unknown key: provider.zone"),
    ("      machineType: g2-standard-4", "      InstanceType: g6", "worker has no machineType"),
    (
        "      scheduling:",
        "      schedule:",
        "worker.node_config.schedule",
    ),
    ("provisioningModel: SPOT", "preemptible: false", "worker must be a spot instance"),
    ("instanceTerminationAction: DELETE", "x: y", "cost money after it was reclaimed"),
    ("onHostMaintenance: TERMINATE", "onHostMaintenance: MIGRATE", "cannot move to another host"),
    ("          autoDelete: true\n", "", "a disk of head would outlive it"),
    ("family/ubuntu-2404", "family/Ubuntu 2404", "head has no sourceImage"),
    ("      serviceAccounts:", "      tags:", "may not use the bucket"),
    ("automaticRestart", "automaticRestat", "worker.node_config.scheduling.automaticRestat"),
    ("diskSizeGb", "diskSizeGB", "head.node_config.disks.initializeParams.diskSizeGB"),
    ("machineType: g2-standard-4", "machineType: n2-standard-4", "worker has no GPU"),
    ('{"CPU": 4, "GPU": 1}', '{"CPU": 4}', "Ray does not know the GPU of worker"),
    ('{"CPU": 0}', '{"CPU": 2}', "the head must offer 0 CPUs"),
    ("STORAGE=gs://", "STORAGE=s3://", "STORAGE must be a bucket: s3://"),
]
BROKEN_ON_PREMISE = [
    ("  head_ip: 10.0.0.10", "  head_ip: 10.0.0.11", "must be different machines"),
    ("[10.0.0.11, 10.0.0.12]", "[]", "must be different machines"),
    ("ssh_private_key: ~/.ssh", "ssh_private_key: /tmp", "the key must be named"),
    ("cluster_name:", "min_workers: 1\ncluster_name:", "unknown key: min_workers"),
    ("  head_ip:", "  external_head_ip: 10.0.0.1\n  head_ip:", "unknown key: provider"),
    ("  ssh_private_key: ~/.ssh/id_ed25519\n", "", "the key must be named"),
    ("export RAY_UP_enable_autoscaler_v2=0", "", "must say: export RAY_UP_enable_autoscaler_v2=0"),
    ("    export RAY_AUTH_MODE=token\n", "", "token authentication is off: worker"),
    ("--app-name basic-auth ", "", "MLflow's start command lacks --app-name basic-auth"),
]
ALL_BROKEN = [
    *(("cluster", *case) for case in BROKEN),
    *(("cluster/gcp", *case) for case in BROKEN_GCP),
    *(("cluster/on-premise", *case) for case in BROKEN_ON_PREMISE),
]


@pytest.mark.parametrize(
    ("name", "right", "wrong", "complaint"),
    ALL_BROKEN,
    ids=[f"{name}: {complaint}" for name, _, _, complaint in ALL_BROKEN],
)
def test_every_check_can_fail(name: str, right: str, wrong: str, complaint: str) -> None:
    assert right in TEXTS[name]
    found = problems(TEXTS[name].replace(right, wrong), ROOT)
    assert any(complaint in problem for problem in found), found


def test_what_git_does_not_ignore_is_shipped(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    (tmp_path / ".gitignore").write_text(".venv/\n", encoding="utf-8")
    (found,) = problems(TEXT, tmp_path)
    assert "must be in .gitignore" in found


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
