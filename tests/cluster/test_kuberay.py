"""The file for Kubernetes passes every check, and every check can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.kuberay_file import problems
from tests.cluster.launcher_file import edited, marked

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster/kuberay.yaml").read_text(encoding="utf-8")


def test_nothing_is_wrong() -> None:
    assert problems(TEXT, ROOT) == []


def test_what_a_user_edits() -> None:
    assert [line.partition(":")[0] for line in marked(TEXT)] == ["STORAGE", "entrypoint", "image"]
    text = edited(TEXT, {1: "STORAGE: gs://mine", 2: "image: &image mine"})
    assert problems(text, ROOT) == []


def test_it_says_what_it_does_not_know() -> None:
    assert "NEVER been run on a real cluster" in " ".join(TEXT.split("\n# "))


BROKEN = [
    ("kind: PersistentVolumeClaim", "kind: Pod", "there must be one each of"),
    ("shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false", "must end with"),
    ("backoffLimit:", "backOffLimit:", "unknown key of RayJob: backOffLimit"),
    ("      activeDeadlineSeconds: 86400\n", "", "the sweep must end some day"),
    ("enableInTreeAutoscaling: true", "enableAutoscaling: true", "unknown key of rayClusterSpec"),
    ("enableInTreeAutoscaling: true", "enableInTreeAutoscaling: false", "neither come nor go"),
    ('        rayVersion: "2.60.0"\n', "", "rayVersion must be given"),
    ('rayVersion: "2.60.0"', 'rayVersion: "2.40.0"', "the image has ray 2.40.0"),
    ("rayproject/ray:2.60.0", "rayproject/ray:2.40.0", "the image has ray 2.40.0"),
    ("mode: token", "mode: disabled", "token authentication is off"),
    ('{num-cpus: "0", num-gpus', '{num-cpus: "2", num-gpus', "the head must offer 0 CPUs"),
    ('{num-cpus: "0", num-gpus: "0"}', '{num-cpus: "0", num-gpus: 0}', "must be text"),
    ("minReplicas: 0", "minReplicas: 1", "no worker without a trial"),
    ("maxReplicas: 4", "maxReplicas: 0", "maxReplicas must be given"),
    ('limits: {cpu: "4", memory: 12Gi, nvidia.com/gpu: 1}', "limits: {}", "must have a GPU"),
    ('limits: {cpu: "2", memory: 8Gi}', 'limits: {cpu: "8"}', "requests must be the same"),
    ("labels: {app: few-shot-search}", "labels: {}", "policy does not cover the worker"),
    (
        "app: few-shot-search, part: mlflow}\n        spec",
        "part: mlflow}\n        spec",
        "the server",
    ),
    ("          restartPolicy: Never", "          hostNetwork: true", "the host's network"),
    ("envFrom: *settings", "envFrom: []", "the head does not know the settings"),
    (
        "serviceAccountName: few-shot-search",
        "serviceAccountName: x",
        "the head may not use the bucket",
    ),
    ("image: *image", "image: other", "all must run the same image"),
    ("generic few-shot-search", "generic other", "the secret must be the one"),
    ("--from-literal=flask", "--from-literal=flusk", "the comment makes the secrets"),
    ("name: MLFLOW_TRACKING_PASSWORD", "name: X", "the driver does not know MLflow's password"),
    ("http://few-shot-mlflow:5000", "http://mlflow:5000", "MLFLOW_TRACKING_URI must be"),
    ("STORAGE: s3://YOUR-BUCKET", "STORAGE: /mnt/sweeps", "STORAGE must be a bucket"),
    ("--app-name basic-auth ", "", "MLflow's start command lacks --app-name basic-auth"),
    ("--allowed-hosts few-shot-mlflow:5000", "--allowed-hosts *", "lacks --allowed-hosts"),
    ("name: MLFLOW_FLASK_SERVER_SECRET_KEY", "name: X", "MLflow lacks MLFLOW_FLASK_SERVER"),
    ("livenessProbe:", "startupProbe:", "MLflow has no livenessProbe"),
    ("{type: Recreate}", "{type: RollingUpdate}", "one server at a time"),
    ("persistentVolumeClaim: {claimName: few-shot-mlflow}", "emptyDir: {}", "a disk that stays"),
    ("workingDir: /mlflow", "workingDir: /tmp", "must work on the disk that stays"),
    ("selector: {app: few-shot-search, part: mlflow}", "selector: {app: x}", "that is selected"),
    ("policyTypes: [Ingress]", "policyTypes: [Egress]", "must close the pods"),
    ("port: 8265", "port: 6379", "a stranger may ask for the sweep's state only"),
    ("- namespaceSelector: {}", "- ipBlock: {cidr: 10.0.0.0/8}", "opens a port to the world"),
    ("type: ClusterIP", "type: LoadBalancer", "opens a port to the world: LoadBalancer"),
    ("serviceType: ClusterIP", "serviceType: NodePort", "opens a port to the world: NodePort"),
    ("MLFLOW_TRACKING_USERNAME: admin", "MLFLOW_TRACKING_PASSWORD: hush", "holds a secret"),
    ("--gpus-per-trial", "--gpu-per-trial", "search.run has no option --gpu-per-trial"),
    ("--device cuda", "", "the sweep that is shown lacks --device cuda"),
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
