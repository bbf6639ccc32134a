"""`cluster.yaml` on a simulated AWS: the commands that a user runs once, then Ray's own
code that starts the head and a worker."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.launcher_file import edited

boto3 = pytest.importorskip("boto3", reason="Ray starts machines on AWS with boto3")
moto = pytest.importorskip("moto", reason="moto plays AWS")

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
REGION = "eu-central-1"
TAG_RAY_CLUSTER_NAME = "ray-cluster-name"

# Prints its arguments after the shell has expanded them.
RECORDER = """#!/bin/sh
printf '%s\\0' "$@" >> "$RECORD"; printf '\\n' >> "$RECORD"
"""


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes an ssh key
    with moto.mock_aws():
        yield


def one_time_commands(folder: Path) -> list[list[str]]:
    """The arguments of every call of `aws` in the file's one-time commands."""
    (command,) = re.findall(r"^#   (sed .* \| bash -e)$", TEXT, re.MULTILINE)
    (folder / "aws").write_text(RECORDER, encoding="utf-8")
    (folder / "aws").chmod(0o755)
    subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env={"PATH": f"{folder}:/usr/bin:/bin", "RECORD": str(folder / "record")},
        check=True,
    )
    calls = (folder / "record").read_text(encoding="utf-8").split("\0\n")
    return [call.split("\0") for call in calls if call]


def call(service: str, operation: str, *options: str) -> Any:
    """Run `aws SERVICE OPERATION --SOME-NAME value ...` as the real program would."""
    arguments = {
        "".join(part.capitalize() for part in name.removeprefix("--").split("-")): value
        for name, value in zip(options[::2], options[1::2], strict=True)
    }
    return getattr(boto3.client(service), operation.replace("-", "_"))(**arguments)


@pytest.mark.slow
def test_ray_starts_the_machines(aws: None, tmp_path: Path) -> None:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config
    from ray.autoscaler.tags import (
        TAG_RAY_LAUNCH_CONFIG,
        TAG_RAY_NODE_KIND,
        TAG_RAY_USER_NODE_TYPE,
    )

    for arguments in one_time_commands(tmp_path):
        call(*arguments)

    text = edited(TEXT, {1: f"region: {REGION}", 2: "export STORAGE=s3://mine"})
    config = prepare_config(yaml.safe_load(text))
    config = AWSNodeProvider.fillout_available_node_types_resources(config)
    worker = config["available_node_types"]["worker"]["resources"]
    assert (worker["CPU"], worker["GPU"]) == (4, 1)
    config = AWSNodeProvider.bootstrap_config(config)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for kind in ("head", "worker"):
        tags = {
            TAG_RAY_NODE_KIND: kind,
            TAG_RAY_USER_NODE_TYPE: kind,
            TAG_RAY_LAUNCH_CONFIG: "any",
        }
        provider.create_node(config["available_node_types"][kind]["node_config"], tags, 1)

    ec2 = boto3.resource("ec2", REGION)
    machines = {
        next(tag["Value"] for tag in machine.tags if tag["Key"] == TAG_RAY_NODE_KIND): machine
        for machine in ec2.instances.all()
    }
    assert set(machines) == {"head", "worker"}
    for kind, machine in machines.items():
        assert machine.image_id.startswith("resolve:ssm:/aws/service/deeplearning/ami/")
        profile = machine.iam_instance_profile["Arn"].rpartition("/")[2]
        assert profile == f"few-shot-search-{kind}"
        assert [group["GroupName"] for group in machine.security_groups] == ["few-shot-search"]
    assert machines["worker"].instance_lifecycle == "spot"
    assert machines["head"].instance_lifecycle is None

    (group,) = ec2.security_groups.filter(GroupNames=["few-shot-search"])
    open_to_the_world = [
        (rule.get("FromPort"), rule.get("ToPort"))
        for rule in group.ip_permissions
        if rule["IpRanges"]
    ]
    assert open_to_the_world == [(22, 22)]


def granted(role: str) -> list[dict[str, Any]]:
    """All statements of a role's policies; it has no managed ones."""
    iam = boto3.client("iam")
    assert iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"] == []
    statements: list[dict[str, Any]] = []
    for name in iam.list_role_policies(RoleName=role)["PolicyNames"]:
        policy = iam.get_role_policy(RoleName=role, PolicyName=name)
        statements += policy["PolicyDocument"]["Statement"]
    assert {statement["Effect"] for statement in statements} == {"Allow"}
    return statements


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_machines_may_use_one_bucket_and_the_head_its_cluster(aws: None, tmp_path: Path) -> None:
    for arguments in one_time_commands(tmp_path):
        call(*arguments)
    worker, head = (granted(f"few-shot-search-{kind}") for kind in ("worker", "head"))
    bucket = "arn:aws:s3:::YOUR-BUCKET"
    assert {arn for s in worker for arn in listed(s["Resource"])} == {bucket, f"{bucket}/*"}
    assert all(a.startswith("s3:") for s in worker for a in listed(s["Action"]))
    for statement in (s for s in head if s not in worker):
        actions = listed(statement["Action"])
        assert not any(action.startswith("s3:") for action in actions)
        changes = [a for a in actions if a.startswith("ec2:") and not a.startswith("ec2:Describe")]
        if changes and "arn:aws:ec2:*:*:instance/*" in listed(statement["Resource"]):
            (condition,) = statement["Condition"]["StringEquals"].items()
            assert condition in (
                (f"aws:RequestTag/{TAG_RAY_CLUSTER_NAME}", "few-shot-search"),
                (f"aws:ResourceTag/{TAG_RAY_CLUSTER_NAME}", "few-shot-search"),
                ("ec2:CreateAction", "RunInstances"),
            )
        if "iam:PassRole" in actions:
            assert statement["Resource"].endswith(":role/few-shot-search-worker")
    for kind in ("head", "worker"):  # the machines' own tags
        profile = yaml.safe_load(TEXT)["available_node_types"][kind]["node_config"]
        assert profile["IamInstanceProfile"] == {"Name": f"few-shot-search-{kind}"}


@pytest.mark.slow
def test_the_head_may_do_all_that_ray_does_there(aws: None, tmp_path: Path) -> None:
    """The role grants every call that Ray's code makes during a worker's life, and no other."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config
    from ray.autoscaler.tags import (
        TAG_RAY_LAUNCH_CONFIG,
        TAG_RAY_NODE_KIND,
        TAG_RAY_NODE_NAME,
        TAG_RAY_USER_NODE_TYPE,
    )

    for arguments in one_time_commands(tmp_path):
        call(*arguments)
    text = edited(TEXT, {1: f"region: {REGION}", 2: "export STORAGE=s3://mine"})
    config = AWSNodeProvider.fillout_available_node_types_resources(
        prepare_config(yaml.safe_load(text))
    )
    config = AWSNodeProvider.bootstrap_config(config)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    calls: list[tuple[str, dict[str, Any]]] = []

    def record(params: dict[str, Any], model: Any, **more: object) -> None:
        calls.append((f"{model.service_model.service_name}:{model.name}", params["body"]))

    provider.ec2.meta.client.meta.events.register("before-call", record)
    provider.ec2_fail_fast.meta.client.meta.events.register("before-call", record)
    worker = config["available_node_types"]["worker"]["node_config"]
    tags = {
        TAG_RAY_NODE_KIND: "worker",
        TAG_RAY_NODE_NAME: "w",
        TAG_RAY_USER_NODE_TYPE: "worker",
        TAG_RAY_LAUNCH_CONFIG: "any",
    }
    provider.create_node(worker, dict(tags), 1)
    (node,) = provider.non_terminated_nodes({})
    provider.set_node_tags(node, {"ray-node-status": "up-to-date"})
    provider.node_tags(node)
    provider.internal_ip(node)
    provider.terminate_node(node)  # stops it: it is cached
    provider.create_node(worker, dict(tags), 1)  # starts it again

    made = {name for name, _ in calls}
    patterns = {a for s in granted("few-shot-search-head") for a in listed(s["Action"])}
    ungranted = [name for name in made if not any(fnmatch(name, p) for p in patterns)]
    assert ungranted == []
    used = {"ssm:GetParameters", "iam:PassRole", "iam:CreateServiceLinkedRole"}  # by EC2 itself
    unused = {p for p in patterns - used if not p.startswith("s3:")} - made - {"ec2:Describe*"}
    assert unused <= {"ec2:StartInstances", "ec2:StopInstances", "ec2:TerminateInstances"}
    (launch,) = [body for name, body in calls if name == "ec2:RunInstances"][:1]
    launched = {
        launch[f"TagSpecification.1.Tag.{n}.Key"]: launch[f"TagSpecification.1.Tag.{n}.Value"]
        for n in range(1, 20)
        if f"TagSpecification.1.Tag.{n}.Key" in launch
    }
    assert launched[TAG_RAY_CLUSTER_NAME] == "few-shot-search"
    assert launch["TagSpecification.1.ResourceType"] == "instance"
