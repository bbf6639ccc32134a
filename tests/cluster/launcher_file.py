"""Checks of a launcher file that need no cloud account.

Ray's own check ignores misspelt provider keys, a missing region, everything in `node_config`, and
the effect of the commands. These checks cover them.
"""

from __future__ import annotations

import copy
import os
import re
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import yaml
from botocore.model import Shape
from botocore.validate import ParamValidator
from moto.ec2.models.instance_types import INSTANCE_TYPES
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config, validate_config

Keys = Mapping[str, Any]
"""Key -> known keys below it, or None if Ray checks them itself; "*" matches any key."""


def _keys(*names: str, **inner: Keys) -> Keys:
    return dict.fromkeys(names) | inner


_COMMON = (
    *("cluster_name", "file_mounts", "rsync_exclude", "rsync_filter", "setup_commands"),
    *("head_setup_commands", "head_start_ray_commands"),
    *("worker_setup_commands", "worker_start_ray_commands"),
)


def _cloud_keys(provider: Keys, node_config: Keys) -> Keys:
    node = _keys("resources", "min_workers", "max_workers", node_config=node_config)
    return _keys(
        *(*_COMMON, "max_workers", "idle_timeout_minutes", "head_node_type"),
        provider=provider,
        auth=_keys("ssh_user"),
        available_node_types={"*": node},
    )


KEYS = {
    "aws": _cloud_keys(
        _keys("type", "region", "cache_stopped_nodes", security_group=_keys("GroupName")),
        _keys(  # botocore knows their content
            *("InstanceType", "ImageId", "IamInstanceProfile"),
            *("BlockDeviceMappings", "InstanceMarketOptions"),
        ),
    ),
    "gcp": _cloud_keys(
        _keys("type", "project_id", "region", "availability_zone", "cache_stopped_nodes"),
        _keys(
            "machineType",
            disks=_keys(
                *("boot", "autoDelete", "type"),
                initializeParams=_keys("diskSizeGb", "sourceImage"),
            ),
            scheduling=_keys(
                *("provisioningModel", "instanceTerminationAction"),
                *("onHostMaintenance", "automaticRestart"),
            ),
            serviceAccounts=_keys("email", "scopes"),
        ),
    ),
    "local": _keys(
        *_COMMON,
        provider=_keys("type", "head_ip", "worker_ips"),
        auth=_keys("ssh_user", "ssh_private_key"),
    ),
}
"""All keys that the files use. Ray silently drops some other keys, such as `min_workers` of a
cloud; the cloud rejects the rest only when the head is already running and costs money."""
TOLD = {
    "aws": ("budget alarm in AWS", "ray down", "ray get-auth-token --generate"),
    "gcp": ("budget alert\n# in Google Cloud", "ray down", "ray get-auth-token --generate"),
    "local": ("export RAY_UP_enable_autoscaler_v2=0", "ray get-auth-token --generate"),
}
"""Mistakes that only the comments can prevent."""
STARTS = {
    "head": (
        *("--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false"),
        "--autoscaling-config=~/ray_bootstrap_config.yaml",
    ),
    "worker": ("--address=$RAY_HEAD_IP:6379",),
}
NOT_SHIPPED = {"rsync_exclude": {"**/.git", "**/.git/**"}, "rsync_filter": {".gitignore"}}
_GPU_MACHINE = re.compile(r"(a2|a3|a4|a4x|g2|g4)-")  # Google's machine types that include GPUs
_REGION = {"aws": r"[a-z]{2}(-[a-z]+)+-\d", "gcp": r"[a-z]+-[a-z]+\d"}
_BUCKET = {"aws": "s3://", "gcp": "gs://"}
_WORLD = re.compile(r"0\.0\.0\.0/0|::/0|--dashboard-host[= ](?!127\.0\.0\.1)|IpPermissions")
_SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|ASIA[0-9A-Z]{16}|aws_secret_access_key|PRIVATE KEY|RAY_AUTH_TOKEN=|"
    r"(?i:password|secret_key)[ \t]*[:=][ \t]*[^\s$]|://[^/\s:]+:[^/\s@]+@|\b[0-9a-fA-F]{32,}\b"
)
_PIN = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[a-z,]+\])?==([0-9][^\s'\",;)]*)")


def problems(text: str, root: Path) -> list[str]:
    """All problems of the launcher file `text` of the repository at `root`."""
    config = yaml.safe_load(text)
    validate_config(prepare_config(copy.deepcopy(config)))
    kind = config["provider"]["type"]
    machines = {"aws": _aws, "gcp": _gcp, "local": _local}[kind]
    return [
        *_twice(yaml.compose(text)),
        *_unknown(config, KEYS[kind]),
        *(f"the comments must say: {words}" for words in TOLD[kind] if words not in text),
        *machines(config),
        *_start_commands(config),
        *_mlflow(config),
        *_syntax(config),
        *_file_mounts(config, root),
        *_environment(config),
        *common_problems(text, root),
    ]


def common_problems(text: str, root: Path) -> list[str]:
    """Content that no launcher file may have."""
    return [
        *(f"opens a port to the world: {found}" for found in _WORLD.findall(_code(text))),
        *(f"holds a secret: {found[:8]}..." for found in _SECRET.findall(text)),
        *_versions(text, root),
        *_sweep(text),
    ]


def edited(text: str, values: Mapping[int, str]) -> str:
    """`text` with a user's values in the lines marked (1), (2), ..."""
    for number, value in values.items():
        line = re.compile(rf"^( *)\S.*?(  # \({number}\).*)$", re.MULTILINE)
        if len(line.findall(text)) != 1:
            raise ValueError(f"not exactly one line is marked ({number})")
        text = line.sub(lambda found, value=value: f"{found[1]}{value}{found[2]}", text)
    return text


def marked(text: str) -> list[str]:
    """The lines that a user edits."""
    return [line.strip() for line in text.splitlines() if re.search(r"[^ #] +.*  # \(\d\)", line)]


def _twice(node: yaml.Node | None) -> Iterator[str]:
    """Duplicate keys, of which YAML silently uses the last."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        yield from (f"a key stands twice: {key}" for key in set(keys) if keys.count(key) > 1)
        for _, value in node.value:
            yield from _twice(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _twice(value)


def _unknown(value: object, known: Keys | None, where: str = "") -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _unknown(item, known, where)
    elif isinstance(value, dict) and known is not None:
        for key, inner in value.items():
            if key in known or "*" in known:
                yield from _unknown(inner, known.get(key, known.get("*")), f"{where}{key}.")
            else:
                yield f"unknown key: {where}{key}"


@cache
def _run_instances() -> Shape:
    """What EC2's request for machines may contain; its description is large."""
    request = botocore.session.get_session().get_service_model("ec2").operation_model
    return request("RunInstances").input_shape


def _aws(config: dict[str, Any]) -> Iterator[str]:
    shape = _run_instances()
    for name, node, is_head in _cloud(config):
        asked = ParamValidator().validate({**node, "MinCount": 1, "MaxCount": 1}, shape)
        if asked.has_errors():
            yield f"AWS would not start {name}: {asked.generate_report()}"
        machine = INSTANCE_TYPES.get(node.get("InstanceType"))
        if machine is None:
            yield f"AWS has no machine for {name}: {node.get('InstanceType')}"
        elif not is_head and "GpuInfo" not in machine:
            yield f"{name} has no GPU"
        for key in ("ImageId", "IamInstanceProfile"):
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
        elif not is_head and not _GPU_MACHINE.match(node["machineType"]):
            yield f"{name} has no GPU"
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


def _cloud(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Name and node configuration of every node type, and whether it is the head."""
    for name, kind in config["available_node_types"].items():
        yield name, kind["node_config"], name == config["head_node_type"]


def _scaling(config: dict[str, Any]) -> Iterator[str]:
    """Checks common to all clouds."""
    kind = config["provider"]["type"]
    region = config["provider"].get("region")
    if not re.fullmatch(_REGION[kind], str(region)):
        yield f"region is missing or malformed: {region}"
    for name, _, is_head in _cloud(config):
        scale = config["available_node_types"][name]
        if is_head and scale.get("resources", {}).get("CPU") != 0:
            yield "the head must offer 0 CPUs"
        if not is_head and scale.get("min_workers") != 0:
            yield f"min_workers of {name} must be 0"
        if not is_head and not 0 < scale.get("max_workers", 0) <= config.get("max_workers", 0):
            yield f"max_workers of {name} must be given, and be at most that of the cluster"
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
    for kind, (command,) in (("head", head), ("worker", worker)):
        for option in STARTS[kind]:
            if option not in command.split():
                yield f"the start command of the {kind} lacks {option}"
        if config[f"{kind}_start_ray_commands"][0] != "ray stop":
            yield f"what still runs on the {kind} must be stopped first: ray stop"


def _mlflow(config: dict[str, Any]) -> Iterator[str]:
    server = next((c for c in config["head_start_ray_commands"] if "mlflow server" in c), "")
    for part in (
        "/health ||",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false",
        "MLFLOW_AUTH_ADMIN_PASSWORD=$(derived mlflow)",
        "MLFLOW_FLASK_SERVER_SECRET_KEY=$(derived flask)",
        "setsid nohup mlflow",
        "--app-name basic-auth ",
        "--host 0.0.0.0 --port 5000 ",
        "--workers 1 ",
        "--backend-store-uri sqlite:",
        "--artifacts-destination $STORAGE/",
        "</dev/null &",
    ):
        if part not in server:
            yield f"MLflow's start command lacks {part}"
    wait = "timeout 120 sh -c 'until curl -fsS http://127.0.0.1:5000/health; do sleep 2; done'"
    if config["head_start_ray_commands"][-1] != wait:
        yield f"`ray up` must fail where MLflow does not start: {wait}"
    if not any("mlflow[auth]" in c for c in _all(config, "setup")):
        yield "MLflow's log-in must be installed: mlflow[auth]"


def _syntax(config: dict[str, Any]) -> Iterator[str]:
    for key, commands in config.items():
        for command in commands if key.endswith("_commands") else []:
            if problem := _shell_problem(command):
                yield f"not a shell command: {command}: {problem}"


@cache
def _shell_problem(command: str) -> str:
    check = subprocess.run(
        ["bash", "-n", "-c", command], capture_output=True, text=True, check=False
    )
    return check.stderr if check.returncode else ""


def _file_mounts(config: dict[str, Any], root: Path) -> Iterator[str]:
    mounts = config["file_mounts"]
    for target, source in mounts.items():
        if not target.startswith("~/"):
            yield f"the target of a file mount must be under ~/: {target}"
        if source.startswith("~/"):
            continue  # the user's own file: checked by name only
        if source.startswith("/") or not (root / source).resolve().is_relative_to(root.resolve()):
            yield f"the source of a file mount must be in the repository or under ~/: {source}"
        elif not (root / source).exists():
            yield f"the source of a file mount does not exist: {source}"
    if mounts.get("~/.ray/auth_token") != "~/.ray/auth_token":
        yield "the token must be shipped from ~/.ray/auth_token to the same place"
    if "chmod 600 ~/.ray/auth_token" not in config["setup_commands"]:
        yield "the token must be readable by its owner only"
    ignored = (root / ".gitignore").read_text(encoding="utf-8").split()
    if not {".venv/", "sweeps/"} <= set(ignored):
        yield "the environment and the sweeps must be in .gitignore, or they are shipped"
    for key, patterns in NOT_SHIPPED.items():
        if not patterns <= set(config.get(key, [])):
            yield f"more than the repository would be shipped: {key} lacks {sorted(patterns)}"
    folder = next((t for t, source in mounts.items() if (root / source) == root), "")
    if not folder or not any(
        "pip install" in c and f"-e {folder} " in f"{c} " for c in _all(config, "setup")
    ):
        yield "the repository must be shipped and installed"


def _environment(config: dict[str, Any]) -> Iterator[str]:
    """Run the commands that set it in an empty home folder, and check what a login then finds."""
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
    """Variables that the set-up commands add to the environment of a login."""
    commands = tuple(c for c in config["setup_commands"] if "cluster.env" in c)
    return dict(_environment_after(commands, head_ip, token))


@cache
def _environment_after(
    commands: tuple[str, ...], head_ip: str, token: str
) -> tuple[tuple[str, str], ...]:
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
    pairs = (line.partition("=") for line in lines)
    return tuple((name, value) for name, _, value in pairs if value)


def _versions(text: str, root: Path) -> Iterator[str]:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ranges = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    for name, version in _PIN.findall(text):
        if version not in ranges.get(name, SpecifierSet("==0")):
            yield f"{name}=={version} is not what pyproject.toml requires ({ranges.get(name)})"
    for version in re.findall(r"(?:rayproject/ray:|rayVersion: \"?)(\d+\.\d+\.\d+)", text):
        if version not in ranges["ray"]:
            yield f"the image has ray {version}, pyproject.toml requires {ranges['ray']}"


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
