"""What can be known about a launcher file without a cloud account.

Ray's own check ignores misspelt provider keys, a missing region, everything in `node_config`, and
what the commands do. These checks see to that.
"""

from __future__ import annotations

import copy
import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

PROVIDER_KEYS = {
    "type",
    "region",
    "availability_zone",
    "cache_stopped_nodes",
    "security_group",
    "use_internal_ips",
}
NODE_KEYS = {"InstanceType", "ImageId", "BlockDeviceMappings", "InstanceMarketOptions"}
_WORLD = re.compile(r"0\.0\.0\.0/0|::/0|--dashboard-host[= ](?!127\.0\.0\.1)|IpPermissions")
_SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|ASIA[0-9A-Z]{16}|aws_secret_access_key|PRIVATE KEY|RAY_AUTH_TOKEN=|"
    r"(?i:password|secret_key)\s*[:=]|://[^/\s:]+:[^/\s@]+@|\b[0-9a-fA-F]{32,}\b"
)
_PIN = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[a-z,]+\])?==([0-9][^\s'\",;)]*)")


def problems(text: str, root: Path) -> list[str]:
    """Everything that is wrong with the launcher file `text` of the repository at `root`."""
    config = yaml.safe_load(text)
    validate_config(prepare_config(copy.deepcopy(config)))
    return [
        *_provider(config),
        *_nodes(config),
        *_start_commands(config),
        *_syntax(config),
        *_file_mounts(config, root),
        *(f"opens a port to the world: {found}" for found in _WORLD.findall(_code(text))),
        *(f"holds a secret: {found[:8]}..." for found in _SECRET.findall(text)),
        *_versions(text, root),
        *_options(text),
    ]


def edited(text: str, values: Mapping[int, str]) -> str:
    """`text` with what a user sets in the lines that are marked (1), (2), ..."""
    for number, value in values.items():
        pattern = rf"^( *)\S.*?(  # \({number}\).*)$"
        text, count = re.subn(
            pattern, lambda line, v=value: f"{line[1]}{v}{line[2]}", text, flags=re.M
        )
        if count != 1:
            raise ValueError(f"{count} lines are marked ({number})")
    return text


def _provider(config: dict[str, Any]) -> Iterator[str]:
    provider = config["provider"]
    for key in provider.keys() - PROVIDER_KEYS:
        yield f"unknown provider key: {key}"
    if not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-\d", str(provider.get("region", ""))):
        yield f"region is missing or malformed: {provider.get('region')}"


def _nodes(config: dict[str, Any]) -> Iterator[str]:
    head = config["head_node_type"]
    for name, kind in config["available_node_types"].items():
        node = kind["node_config"]
        for key in node.keys() - NODE_KEYS:
            yield f"unknown key in node_config of {name}: {key}"
        for key in ("InstanceType", "ImageId"):
            if not node.get(key):
                yield f"{name} has no {key}"
        if name == head:
            if kind.get("resources", {}).get("CPU") != 0:
                yield "the head must offer 0 CPUs"
            if "InstanceMarketOptions" in node:
                yield "the head must not be a spot instance"
        else:
            if kind.get("min_workers") != 0:
                yield f"min_workers of {name} must be 0"
            if not kind.get("max_workers"):
                yield f"max_workers of {name} must be given"
            market = node.get("InstanceMarketOptions", {})
            if market.get("MarketType") != "spot":
                yield f"{name} must be a spot instance"
            if not float(market.get("SpotOptions", {}).get("MaxPrice", 0)) > 0:
                yield f"{name} must have a MaxPrice"
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
    for option in ("--head", "--num-cpus=0", "--autoscaling-config=~/ray_bootstrap_config.yaml"):
        if option not in head[0].split():
            yield f"the head's start command lacks {option}"
    if "--address=$RAY_HEAD_IP:6379" not in worker[0].split():
        yield "the workers' start command lacks --address"
    for kind, command in (("head", head[0]), ("worker", worker[0])):
        if not re.search(r"export [^;]*\bRAY_AUTH_MODE=token\b[^;]*;.*ray start", command):
            yield f"token authentication is off in the start command: {kind}"
    if not any("RAY_AUTH_MODE=token" in c and "~/.bashrc" in c for c in config["setup_commands"]):
        yield "token authentication is off for drivers"
    if "MLFLOW_TRACKING_URI=http://$RAY_HEAD_IP:5000" not in worker[0]:
        yield "workers do not know MLflow's address"
    server = next((c for c in config["head_start_ray_commands"] if "mlflow server" in c), "")
    for part in (
        "/health ||",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false",
        "setsid nohup mlflow",
        "--workers 1 ",
        "--backend-store-uri sqlite:",
        "--artifacts-destination ",
        "</dev/null &",
    ):
        if part not in server:
            yield f"MLflow's start command lacks {part}"


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
        if not target.startswith("/home/"):
            yield f"the target of a file mount must be under /home: {target}"
        if source.startswith("~/"):
            continue  # the user's own: named, not looked at
        if source.startswith("/") or not (root / source).resolve().is_relative_to(root.resolve()):
            yield f"the source of a file mount must be in the repository or under ~/: {source}"
        elif not (root / source).exists():
            yield f"the source of a file mount does not exist: {source}"
    tokens = {t for t, source in mounts.items() if source == "~/.ray/auth_token"}
    if tokens != {f"/home/{config['auth']['ssh_user']}/.ray/auth_token"}:
        yield "the token must be shipped from ~/.ray/auth_token to the same place"
    folder = next((t for t, source in mounts.items() if (root / source) == root), "")
    name = Path(folder).name
    if not name or not any("pip install" in c and f"~/{name}" in c for c in _all(config, "setup")):
        yield "the repository must be shipped and installed"


def _versions(text: str, root: Path) -> Iterator[str]:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(_PIN.findall("\n".join(project["dependencies"])))
    for name, version in _PIN.findall(text):
        if pins.get(name) != version:
            yield f"{name}=={version} is not what pyproject.toml says ({pins.get(name)})"
    for version in re.findall(r"rayproject/ray:(\d+\.\d+\.\d+)", text):
        if version != pins["ray"]:
            yield f"the image has ray {version}, pyproject.toml says {pins['ray']}"


def _options(text: str) -> Iterator[str]:
    """Options of the sweep that the comments show."""
    from search.run import build_parser

    known = {option for action in build_parser()._actions for option in action.option_strings}
    shown = re.search(r"'python -m search\.run(.*?)'", text, re.DOTALL)
    if shown is None:
        yield "the file does not say how to run a sweep"
        return
    for option in re.findall(r"--[a-z-]+", shown[1]):
        if option not in known:
            yield f"search.run has no option {option}"
    for option in ("--address auto", "--storage /mnt/sweeps", "--device cuda"):
        if option not in shown[1]:
            yield f"the sweep that is shown lacks {option}"


def _all(config: dict[str, Any], kind: str) -> list[str]:
    return [c for key, value in config.items() if key.endswith(f"{kind}_commands") for c in value]


def _code(text: str) -> str:
    return "\n".join(line.partition(" #")[0] for line in text.splitlines() if line[:1] != "#")
