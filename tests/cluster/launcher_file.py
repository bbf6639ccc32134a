"""What can be known about a launcher file without a cloud account.

Ray's own check ignores misspelt provider keys, a missing region, everything in `node_config`, and
what the commands do. These checks see to that.
"""

from __future__ import annotations

import copy
import os
import re
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

PROVIDER_KEYS = {
    "aws": {"type", "region", "cache_stopped_nodes", "security_group"},
    "gcp": {"type", "project_id", "region", "availability_zone", "cache_stopped_nodes"},
    "local": {"type", "head_ip", "worker_ips"},
}
NODE_KEYS = {
    "aws": {
        "InstanceType",
        "ImageId",
        "IamInstanceProfile",
        "BlockDeviceMappings",
        "InstanceMarketOptions",
    },
    "gcp": {"machineType", "disks", "scheduling", "serviceAccounts"},
}
_REGION = {"aws": r"[a-z]{2}(-[a-z]+)+-\d", "gcp": r"[a-z]+-[a-z]+\d"}
_BUCKET = {"aws": "s3://", "gcp": "gs://"}
_WORLD = re.compile(r"0\.0\.0\.0/0|::/0|--dashboard-host[= ](?!127\.0\.0\.1)|IpPermissions")
_SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|ASIA[0-9A-Z]{16}|aws_secret_access_key|PRIVATE KEY|RAY_AUTH_TOKEN=|"
    r"(?i:password|secret_key)[ \t]*[:=][ \t]*[^\s$]|://[^/\s:]+:[^/\s@]+@|\b[0-9a-fA-F]{32,}\b"
)
_PIN = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[a-z,]+\])?==([0-9][^\s'\",;)]*)")


def problems(text: str, root: Path) -> list[str]:
    """Everything that is wrong with the launcher file `text` of the repository at `root`."""
    config = yaml.safe_load(text)
    validate_config(prepare_config(copy.deepcopy(config)))
    kind = config["provider"]["type"]
    machines = {"aws": _aws, "gcp": _gcp, "local": _local}[kind]
    return [
        *(
            f"unknown provider key: {key}"
            for key in config["provider"].keys() - PROVIDER_KEYS[kind]
        ),
        *machines(config),
        *_start_commands(config),
        *_mlflow(config),
        *_syntax(config),
        *_file_mounts(config, root),
        *_environment(config),
        *common_problems(text, root),
    ]


def common_problems(text: str, root: Path) -> list[str]:
    """What no file may hold, whatever launches it."""
    return [
        *(f"opens a port to the world: {found}" for found in _WORLD.findall(_code(text))),
        *(f"holds a secret: {found[:8]}..." for found in _SECRET.findall(text)),
        *_versions(text, root),
        *_sweep(text),
    ]


def edited(text: str, values: Mapping[int, str]) -> str:
    """`text` with what a user sets in the lines that are marked (1), (2), ..."""
    for number, value in values.items():
        line = re.compile(rf"^( *)\S.*?(  # \({number}\).*)$", re.MULTILINE)
        if len(line.findall(text)) != 1:
            raise ValueError(f"not exactly one line is marked ({number})")
        text = line.sub(lambda found, value=value: f"{found[1]}{value}{found[2]}", text)
    return text


def marked(text: str) -> list[str]:
    """The lines that a user edits."""
    return [line.strip() for line in text.splitlines() if re.search(r"[^ #] +.*  # \(\d\)", line)]


def _aws(config: dict[str, Any]) -> Iterator[str]:
    for name, node, is_head in _cloud(config):
        for key in ("InstanceType", "ImageId", "IamInstanceProfile"):
            if not node.get(key):
                yield f"{name} has no {key}"
        market = node.get("InstanceMarketOptions", {})
        if is_head and market:
            yield "the head must not be a spot instance"
        if not is_head and market.get("MarketType") != "spot":
            yield f"{name} must be a spot instance"
        if not is_head and not float(market.get("SpotOptions", {}).get("MaxPrice", 0)) > 0:
            yield f"{name} must have a MaxPrice"
    yield from _scaling(config)


def _gcp(config: dict[str, Any]) -> Iterator[str]:
    provider = config["provider"]
    if not provider.get("project_id"):
        yield "project_id is missing"
    if not str(provider.get("availability_zone")).startswith(f"{provider.get('region')}-"):
        yield "availability_zone must be one of the region's"
    for name, node, is_head in _cloud(config):
        if not node.get("machineType"):
            yield f"{name} has no machineType"
        for disk in node.get("disks", [{}]):
            image = disk.get("initializeParams", {}).get("sourceImage", "")
            if not re.fullmatch(r"projects/[a-z-]+/global/images/(family/)?[a-z0-9-]+", image):
                yield f"{name} has no sourceImage"
            if not disk.get("autoDelete"):
                yield f"a disk of {name} would outlive it"
        model = node.get("scheduling", {})
        if is_head and model:
            yield "the head must not be a spot instance"
        if not is_head and model.get("provisioningModel") != "SPOT":
            yield f"{name} must be a spot instance"
        if not is_head and model.get("instanceTerminationAction") != "DELETE":
            yield f"{name} would cost money after it was reclaimed"
        if not is_head and model.get("onHostMaintenance") != "TERMINATE":
            yield f"{name} has a GPU and cannot move to another host"
        if not is_head and not node.get("serviceAccounts"):
            yield f"{name} may not use the bucket"
        if not is_head and not config["available_node_types"][name]["resources"].get("GPU"):
            yield f"Ray does not know the GPU of {name}"
    yield from _scaling(config)


def _local(config: dict[str, Any]) -> Iterator[str]:
    provider, auth = config["provider"], config["auth"]
    addresses = [provider["head_ip"], *provider["worker_ips"]]
    if len(set(addresses)) < len(addresses) or len(addresses) < 2:
        yield "the head and the workers must be different machines"
    if not auth.get("ssh_private_key", "").startswith("~/"):
        yield "the key must be named, and be the user's own"
    for key in ("min_workers", "max_workers"):
        if key in config:
            yield f"all machines take part: {key} must be left away"


def _cloud(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Name and node configuration of every node type, and whether it is the head's."""
    for name, kind in config["available_node_types"].items():
        yield name, kind["node_config"], name == config["head_node_type"]


def _scaling(config: dict[str, Any]) -> Iterator[str]:
    """What all clouds have in common."""
    kind = config["provider"]["type"]
    region = config["provider"].get("region")
    if not re.fullmatch(_REGION[kind], str(region)):
        yield f"region is missing or malformed: {region}"
    for name, node, is_head in _cloud(config):
        for key in node.keys() - NODE_KEYS[kind]:
            yield f"unknown key in node_config of {name}: {key}"
        scale = config["available_node_types"][name]
        if is_head and scale.get("resources", {}).get("CPU") != 0:
            yield "the head must offer 0 CPUs"
        if not is_head and scale.get("min_workers") != 0:
            yield f"min_workers of {name} must be 0"
        if not is_head and not scale.get("max_workers"):
            yield f"max_workers of {name} must be given"
    if not config.get("idle_timeout_minutes", 0) > 0:
        yield "idle_timeout_minutes must be given"


def _start_commands(config: dict[str, Any]) -> Iterator[str]:
    head, worker = (
        [c for c in config[f"{kind}_start_ray_commands"] if "ray start" in c]
        for kind in ("head", "worker")
    )
    if len(head) != 1 or len(worker) != 1:
        yield "there must be one `ray start` for the head and one for workers"
        return
    for option in (
        "--head",
        "--num-cpus=0",
        "--include-dashboard=false",
        "--autoscaling-config=~/ray_bootstrap_config.yaml",
    ):
        if option not in head[0].split():
            yield f"the head's start command lacks {option}"
    if "--address=$RAY_HEAD_IP:6379" not in worker[0].split():
        yield "the workers' start command lacks --address"


def _mlflow(config: dict[str, Any]) -> Iterator[str]:
    server = next((c for c in config["head_start_ray_commands"] if "mlflow server" in c), "")
    for part in (
        "/health ||",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false",
        "MLFLOW_AUTH_ADMIN_PASSWORD=$(derived mlflow)",
        "MLFLOW_FLASK_SERVER_SECRET_KEY=$(derived flask)",
        "setsid nohup mlflow",
        "--app-name basic-auth ",
        "--workers 1 ",
        "--backend-store-uri sqlite:",
        "--artifacts-destination $STORAGE/",
        "</dev/null &",
    ):
        if part not in server:
            yield f"MLflow's start command lacks {part}"
    if not any("mlflow[auth]" in c for c in _all(config, "setup")):
        yield "MLflow's log-in must be installed: mlflow[auth]"


def _syntax(config: dict[str, Any]) -> Iterator[str]:
    for key, commands in config.items():
        for command in commands if key.endswith("_commands") else []:
            check = subprocess.run(
                ["bash", "-n", "-c", command], capture_output=True, text=True, check=False
            )
            if check.returncode:
                yield f"not a shell command: {command}: {check.stderr}"


def _file_mounts(config: dict[str, Any], root: Path) -> Iterator[str]:
    mounts = config["file_mounts"]
    for target, source in mounts.items():
        if not target.startswith("~/"):
            yield f"the target of a file mount must be under ~/: {target}"
        if source.startswith("~/"):
            continue  # the user's own: named, not looked at
        if source.startswith("/") or not (root / source).resolve().is_relative_to(root.resolve()):
            yield f"the source of a file mount must be in the repository or under ~/: {source}"
        elif not (root / source).exists():
            yield f"the source of a file mount does not exist: {source}"
    if mounts.get("~/.ray/auth_token") != "~/.ray/auth_token":
        yield "the token must be shipped from ~/.ray/auth_token to the same place"
    if "chmod 600 ~/.ray/auth_token" not in config["setup_commands"]:
        yield "the token must be readable by its owner only"
    folder = next((t for t, source in mounts.items() if (root / source) == root), "")
    if not folder or not any(
        "pip install" in c and f"-e {folder} " in f"{c} " for c in _all(config, "setup")
    ):
        yield "the repository must be shipped and installed"


def _environment(config: dict[str, Any]) -> Iterator[str]:
    """Run the commands that set it, in an empty home, and look at what a log-in then finds."""
    for kind, head, server in (("head", "", "127.0.0.1"), ("worker", "10.0.0.9", "10.0.0.9")):
        found = environment(config, head)
        if found.get("RAY_AUTH_MODE") != "token":
            yield f"token authentication is off: {kind}"
        if found.get("MLFLOW_TRACKING_URI") != f"http://{server}:5000":
            yield f"MLflow's address is not known: {kind}"
        storage = found.get("STORAGE", "")
        if not storage.startswith(_BUCKET.get(config["provider"]["type"], "")) or not storage:
            yield f"STORAGE must be a bucket: {storage}"
        password = found.get("MLFLOW_TRACKING_PASSWORD", "")
        if found.get("MLFLOW_TRACKING_USERNAME") != "admin" or len(password) != 32:
            yield f"MLflow's user and password are not known: {kind}"
        other = environment(config, head, token="another")
        if password == other.get("MLFLOW_TRACKING_PASSWORD"):
            yield "MLflow's password must depend on the token"


def environment(config: dict[str, Any], head_ip: str, token: str = "token") -> dict[str, str]:
    """What the set-up commands put into the environment of whoever logs in."""
    commands = [c for c in config["setup_commands"] if "cluster.env" in c]
    with tempfile.TemporaryDirectory() as home:
        for folder in (".ray", "venv/bin"):
            (Path(home) / folder).mkdir(parents=True)
        (Path(home) / ".ray" / "auth_token").write_text(token, encoding="utf-8")
        (Path(home) / "venv" / "bin" / "activate").touch()
        script = "\n".join([*commands * 2, "source ~/.bashrc", "env -0"])
        given = {"HOME": home, "PATH": os.environ["PATH"], "RAY_HEAD_IP": head_ip}
        shown = subprocess.run(
            ["bash", "-c", script], env=given, capture_output=True, text=True, check=False
        )
    lines = shown.stdout.split("\0")
    return {name: value for name, _, value in (line.partition("=") for line in lines) if value}


def _versions(text: str, root: Path) -> Iterator[str]:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(_PIN.findall("\n".join(project["dependencies"])))
    for name, version in _PIN.findall(text):
        if pins.get(name) != version:
            yield f"{name}=={version} is not what pyproject.toml says ({pins.get(name)})"
    for version in re.findall(r"(?:rayproject/ray:|rayVersion: \"?)(\d+\.\d+\.\d+)", text):
        if version != pins["ray"]:
            yield f"the image has ray {version}, pyproject.toml says {pins['ray']}"


def _sweep(text: str) -> Iterator[str]:
    """The options of the sweep that the file shows or runs."""
    from search.run import build_parser

    known = {option for action in build_parser()._actions for option in action.option_strings}
    shown = re.search(r"python -m search\.run((?:[^']|\n)*?)(?:'|\n\n)", text)
    if shown is None:
        yield "the file does not say how to run a sweep"
        return
    for option in re.findall(r"--[a-z-]+", shown[1]):
        if option not in known:
            yield f"search.run has no option {option}"
    for option in ("--address auto", "--storage $STORAGE/sweeps", "--device cuda"):
        if option not in shown[1]:
            yield f"the sweep that is shown lacks {option}"


def _all(config: dict[str, Any], kind: str) -> list[str]:
    return [c for key, value in config.items() if key.endswith(f"{kind}_commands") for c in value]


def _code(text: str) -> str:
    return "\n".join(line.partition(" #")[0] for line in text.splitlines() if line[:1] != "#")
