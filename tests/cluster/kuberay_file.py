"""Checks of the Kubernetes file that need no Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.launcher_file import common_problems

KINDS = [
    "ConfigMap",
    "ServiceAccount",
    "RayJob",
    "Deployment",
    "PersistentVolumeClaim",
    "Service",
    "NetworkPolicy",
]
# Fields of KubeRay 1.6.2; its API server silently drops unknown fields.
JOB_KEYS = {
    "entrypoint",
    "submitterPodTemplate",
    "backoffLimit",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "activeDeadlineSeconds",
    "rayClusterSpec",
}
CLUSTER_KEYS = {
    "rayVersion",
    "authOptions",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headGroupSpec",
    "workerGroupSpecs",
}
HEAD_KEYS = {"serviceType", "rayStartParams", "template"}
WORKER_KEYS = {
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "rayStartParams",
    "template",
}
GPU = "nvidia.com/gpu"


def problems(text: str, root: Path) -> list[str]:
    """All problems of the file `text` of the repository at `root`."""
    items = yaml.safe_load(text)["items"]
    if sorted(item["kind"] for item in items) != sorted(KINDS):
        return [f"there must be one each of {', '.join(KINDS)}"]
    objects = {item["kind"]: item for item in items}
    return [
        *_job(objects["RayJob"]["spec"]),
        *_cluster(objects["RayJob"]["spec"].get("rayClusterSpec", {})),
        *_pods(objects),
        *_secrets(objects, text),
        *_mlflow(objects),
        *_network(objects),
        *common_problems(text, root),
    ]


def _job(job: dict[str, Any]) -> Iterator[str]:
    yield from (f"unknown key of RayJob: {key}" for key in job.keys() - JOB_KEYS)
    if job.get("shutdownAfterJobFinishes") is not True:
        yield "the cluster must end with the sweep"
    if not job.get("activeDeadlineSeconds", 0) > 0:
        yield "the sweep must end some day: activeDeadlineSeconds"


def _cluster(cluster: dict[str, Any]) -> Iterator[str]:
    head, groups = cluster.get("headGroupSpec", {}), cluster.get("workerGroupSpecs", [])
    for keys, known, where in (
        (cluster, CLUSTER_KEYS, "rayClusterSpec"),
        (head, HEAD_KEYS, "headGroupSpec"),
        *((group, WORKER_KEYS, "workerGroupSpecs") for group in groups),
    ):
        yield from (f"unknown key of {where}: {key}" for key in keys.keys() - known)
    if not cluster.get("rayVersion"):
        yield "rayVersion must be given: KubeRay asks it whether Ray knows tokens"
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "token authentication is off"
    if cluster.get("enableInTreeAutoscaling") is not True:
        yield "workers would neither come nor go"
    if head.get("rayStartParams", {}).get("num-cpus") != "0":
        yield "the head must offer 0 CPUs"
    for group in groups:
        if group.get("minReplicas") != 0 or group.get("replicas") != 0:
            yield "there must be no worker without a trial"
        if not group.get("maxReplicas"):
            yield "maxReplicas must be given"
        (container,) = group["template"]["spec"]["containers"]
        if container["resources"]["limits"].get(GPU) != 1:
            yield "a worker must have a GPU"
    for group in [head, *groups]:
        if not all(isinstance(value, str) for value in group["rayStartParams"].values()):
            yield "rayStartParams must be text"
        (container,) = group["template"]["spec"]["containers"]
        if container["resources"]["requests"] != container["resources"]["limits"]:
            yield "Ray takes limits for what there is: requests must be the same"


def _pods(objects: dict[str, Any]) -> Iterator[str]:
    selected = objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"].items()
    images = set()
    for name, template in _templates(objects).items():
        if not selected <= template.get("metadata", {}).get("labels", {}).items():
            yield f"the network policy does not cover the {name}"
        if template["spec"].get("hostNetwork"):
            yield f"the {name} must not be on the host's network"
        for container in template["spec"]["containers"]:
            images.add(container["image"])
            if {"configMapRef": {"name": _name(objects["ConfigMap"])}} not in container["envFrom"]:
                yield f"the {name} does not know the settings"
        account = template["spec"].get("serviceAccountName")
        if name != "submitter" and account != _name(objects["ServiceAccount"]):
            yield f"the {name} may not use the bucket"
    if len(images) != 1:
        yield f"all must run the same image, got {sorted(images)}"


def _secrets(objects: dict[str, Any], text: str) -> Iterator[str]:
    """Check that the secrets in use are those that the comment creates."""
    command = re.search(r"kubectl create secret generic (\S+)((?:.*\n)(?:#     --.*\n)*)", text)
    made = re.findall(r"--from-literal=(\w+)=\$\(openssl rand", command[2]) if command else []
    used = {"auth_token"}
    names = {objects["RayJob"]["spec"]["rayClusterSpec"].get("authOptions", {}).get("secretName")}
    for template in _templates(objects).values():
        for container in template["spec"]["containers"]:
            for variable in container.get("env", []):
                if "valueFrom" in variable:
                    used.add(variable["valueFrom"]["secretKeyRef"]["key"])
                    names.add(variable["valueFrom"]["secretKeyRef"]["name"])
    if command is None or names != {command[1]}:
        yield f"the secret must be the one that the comment makes, got {names}"
    if used != set(made):
        yield f"the comment makes the secrets {sorted(made)}, used are {sorted(used)}"
    head = objects["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    if "MLFLOW_TRACKING_PASSWORD" not in {v["name"] for v in head["containers"][0].get("env", [])}:
        yield "the driver does not know MLflow's password"


def _mlflow(objects: dict[str, Any]) -> Iterator[str]:
    settings, service = objects["ConfigMap"]["data"], objects["Service"]
    deployment = objects["Deployment"]["spec"]
    (container,) = deployment["template"]["spec"]["containers"]
    (port,) = service["spec"]["ports"]
    address = f"{_name(service)}:{port['port']}"
    if settings.get("MLFLOW_TRACKING_URI") != f"http://{address}":
        yield f"MLFLOW_TRACKING_URI must be the service: http://{address}"
    if not re.match(r"(s3|gs)://", settings.get("STORAGE", "")):
        yield "STORAGE must be a bucket"
    command = " ".join(container["args"])
    for part in (
        "--app-name basic-auth ",
        f"--port {port['port']} ",
        "--workers 1 ",
        f"--allowed-hosts {address},localhost:{port['port']} ",
        "--backend-store-uri sqlite:",
        "--artifacts-destination $STORAGE/",
    ):
        if part not in command:
            yield f"MLflow's start command lacks {part}"
    variables = {variable["name"] for variable in container["env"]}
    for name in (
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION",
        "MLFLOW_AUTH_ADMIN_PASSWORD",
        "MLFLOW_FLASK_SERVER_SECRET_KEY",
    ):
        if name not in variables:
            yield f"MLflow lacks {name}"
    for probe in ("readinessProbe", "livenessProbe"):
        if container.get(probe, {}).get("httpGet", {}).get("path") != "/health":
            yield f"MLflow has no {probe}"
    if deployment.get("strategy", {}).get("type") != "Recreate" or deployment["replicas"] != 1:
        yield "one server at a time may have MLflow's database"
    volumes = deployment["template"]["spec"]["volumes"]
    claims = [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in volumes]
    if claims != [_name(objects["PersistentVolumeClaim"])]:
        yield "MLflow's database must be on a disk that stays"
    if [m["mountPath"] for m in container["volumeMounts"]] != [container["workingDir"]]:
        yield "MLflow must work on the disk that stays"
    labels = deployment["template"]["metadata"]["labels"].items()
    for selector in (service["spec"]["selector"], deployment["selector"]["matchLabels"]):
        if not selector.items() <= labels:
            yield "MLflow's pod is not the one that is selected"


def _network(objects: dict[str, Any]) -> Iterator[str]:
    policy = objects["NetworkPolicy"]["spec"]
    if policy.get("policyTypes") != ["Ingress"]:
        yield "the network policy must close the pods"
    for rule in policy.get("ingress", []):
        own = [{"podSelector": policy["podSelector"]}]
        if rule.get("from") != own and [p["port"] for p in rule.get("ports", [])] != [8265]:
            yield "a stranger may ask for the sweep's state only"
        if not rule.get("from") or any(
            "ipBlock" in peer or not peer.get("podSelector") for peer in rule["from"]
        ):
            yield "opens a port to the world: network policy"
    for kind in (
        objects["Service"]["spec"].get("type"),
        objects["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"].get("serviceType"),
    ):
        if kind != "ClusterIP":
            yield f"opens a port to the world: {kind}"


def _templates(objects: dict[str, Any]) -> dict[str, Any]:
    job = objects["RayJob"]["spec"]
    return {
        "submitter": job["submitterPodTemplate"],
        "head": job["rayClusterSpec"]["headGroupSpec"]["template"],
        "worker": job["rayClusterSpec"]["workerGroupSpecs"][0]["template"],
        "server": objects["Deployment"]["spec"]["template"],
    }


def _name(item: dict[str, Any]) -> str:
    return str(item["metadata"]["name"])
