"""`cluster.yaml` on a simulated AWS: the commands that it tells a user to run once, then Ray's own
code that starts the head and a worker."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
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

# Writes what the shell has made of its arguments.
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
    monkeypatch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
    with moto.mock_aws():
        yield


def one_time_commands(folder: Path) -> list[list[str]]:
    """The arguments of every call of `aws` that the file tells a user to make."""
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
    """`aws SERVICE OPERATION --SOME-NAME value ...`, as the real program would do it."""
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


def test_what_the_machines_may_do(aws: None, tmp_path: Path) -> None:
    for arguments in one_time_commands(tmp_path):
        call(*arguments)
    iam = boto3.client("iam")
    policies = {
        kind: {
            policy["PolicyName"]
            for policy in iam.list_attached_role_policies(RoleName=f"few-shot-search-{kind}")[
                "AttachedPolicies"
            ]
        }
        for kind in ("head", "worker")
    }
    assert policies["worker"] == {"AmazonS3FullAccess"}
    assert policies["head"] == {
        "AmazonS3FullAccess",
        "AmazonEC2FullAccess",  # start and stop workers
        "AmazonSSMReadOnlyAccess",  # look up their image
    }
    (statement,) = [
        iam.get_role_policy(RoleName="few-shot-search-head", PolicyName=name)["PolicyDocument"][
            "Statement"
        ]
        for name in iam.list_role_policies(RoleName="few-shot-search-head")["PolicyNames"]
    ]
    assert statement["Action"] == "iam:PassRole"
    assert statement["Resource"].endswith(":role/few-shot-search-worker")
