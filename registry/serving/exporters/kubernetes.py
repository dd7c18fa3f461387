"""Kubernetes: Deployment, Service and ServiceAccount; PodMonitor, PrometheusRule and the dashboard.

The pod meets the Pod Security Standards' "restricted" profile
(https://kubernetes.io/docs/concepts/security/pod-security-standards/). The model is pinned by digest: an init container
pulls it, or the kubelet mounts it as an image volume.
"""

from __future__ import annotations

import json

from registry.core.documents import Document, Json
from registry.serving.exporters import grafana, prometheus, quoting
from registry.serving.exporters.export import (
    UID,
    Export,
    Files,
    container_environment,
    heading,
    model_path,
    name_of,
    quantity,
    secrets,
    serve,
    to_yaml,
)
from registry.serving.serving_manifest import image_of

ABOUT = "Deployment, Service and monitoring; the model is pulled by digest"
NEEDS_REPOSITORY = True
ORAS = "ghcr.io/oras-project/oras:v1.2.3"

SAFE: Document = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def files(export: Export) -> Files:
    """`kubernetes.yaml`, and `monitoring.yaml` for clusters that run the Prometheus operator."""
    name = name_of(export)
    key = f"Optional API key: kubectl create secret generic {name} --from-literal=api-key=..."
    operator = "For clusters with the Prometheus operator. Grafana's sidecar finds the dashboard by its label."
    return {
        "kubernetes.yaml": heading(export, key) + to_yaml(_account(export), _deployment(export), _service(export)),
        "monitoring.yaml": heading(export, operator)
        + to_yaml(_pod_monitor(export), _prometheus_rule(export), _dashboard(export)),
    }


def labels(export: Export) -> dict[str, str]:
    """The recommended labels (https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/)."""
    return {
        "app.kubernetes.io/name": name_of(export),
        "app.kubernetes.io/component": "vllm",
        "app.kubernetes.io/managed-by": "qpack",
    }


def selector(export: Export) -> dict[str, str]:
    """The pod selector. It is immutable in a Deployment."""
    return {"app.kubernetes.io/name": name_of(export), "app.kubernetes.io/component": "vllm"}


def metadata(export: Export, **more: str) -> Document:
    """Name, labels, and the release as annotations."""
    annotations = {"org.qpack.release": export.reference, "org.qpack.digest": export.digest}
    return {"name": name_of(export), "labels": {**labels(export), **more}, "annotations": annotations}


def pod(export: Export) -> Document:
    """The pod's spec."""
    volume, inits = _model(export)
    spec: dict[str, Json] = {
        "serviceAccountName": name_of(export),
        "automountServiceAccountToken": False,
        # Otherwise Kubernetes sets variables such as VLLM_PORT for a Service named vllm, which vLLM reads.
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": UID,
            "runAsGroup": UID,
            "fsGroup": UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": 60,
    }
    if inits:
        spec["initContainers"] = inits
    spec["containers"] = [container(export)]
    spec["volumes"] = [
        volume,
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    return spec


def container(export: Export) -> Document:
    """The server's container."""
    path, probes = model_path(export), export.manifest.probes
    command = serve(export, path)
    return {
        "name": "vllm",
        "image": image_of(export.manifest),
        "command": command[:2],
        "args": [quoting.kubernetes(word) for word in command[2:]],
        "env": variables(export),
        "ports": [{"name": "http", "containerPort": export.port}],
        "startupProbe": _probe(probes.health, 10, -(-probes.startup_budget_seconds // 10)),
        "readinessProbe": _probe(probes.health, 10, 3),
        "livenessProbe": _probe(probes.health, 20, 5),
        "resources": resources(export),
        "securityContext": SAFE,
        "volumeMounts": [
            {"name": "model", "mountPath": path, **({"subPath": "model"} if export.mount == "pull" else {}),
             "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }  # fmt: skip


def variables(export: Export) -> list[Document]:
    """The server's environment, with optional references to secrets."""
    plain: list[Document] = [
        {"name": name, "value": quoting.kubernetes(value)}
        for name, value in sorted(container_environment(export).items())
    ]
    hidden: list[Document] = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": name_of(export), "key": key, "optional": True}}}
        for name, key in secrets(export).items()
    ]
    return [*plain, *hidden]


def resources(export: Export) -> Document:
    """GPUs; on a CPU the measured peak memory of the server."""
    if export.manifest.devices:
        gpus = str(export.manifest.devices)
        return {"limits": {"nvidia.com/gpu": gpus}, "requests": {"nvidia.com/gpu": gpus}}
    memory = export.manifest.memory
    return {"requests": {"memory": quantity(memory.resident_bytes)}} if memory and memory.resident_bytes else {}


def _model(export: Export) -> tuple[Document, list[Document]]:
    """The volume that holds the model, and the init containers that fill it."""
    source = f"{export.repository}@{export.digest}"
    if export.mount == "image":
        return {"name": "model", "image": {"reference": source, "pullPolicy": "IfNotPresent"}}, []
    pull: Document = {
        "name": "pull",
        "image": ORAS,
        "args": ["pull", source, "--output", "/model"],
        "env": [{"name": "HOME", "value": "/tmp"}],
        "resources": {},
        "securityContext": SAFE,
        "volumeMounts": [{"name": "model", "mountPath": "/model"}, {"name": "tmp", "mountPath": "/tmp"}],
    }
    return {"name": "model", "emptyDir": {}}, [pull]


def _probe(path: str, period: int, failures: int) -> Document:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _account(export: Export) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(export),
        "automountServiceAccountToken": False,
    }


def _deployment(export: Export) -> Document:
    budget = export.manifest.probes.startup_budget_seconds
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(export),
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": selector(export)},
            "progressDeadlineSeconds": budget + 600,
            "template": {"metadata": {"labels": labels(export)}, "spec": pod(export)},
        },
    }


def _service(export: Export) -> Document:
    port: Document = {"name": "http", "port": export.port, "targetPort": "http"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(export),
        "spec": {"selector": selector(export), "ports": [port]},
    }


def _pod_monitor(export: Export) -> Document:
    # Rules and dashboard select the server by its job, which the operator would name after the PodMonitor.
    relabel = {"targetLabel": "job", "replacement": name_of(export)}
    endpoint: Document = {"port": "http", "path": "/metrics", "interval": "15s", "relabelings": [relabel]}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": metadata(export),
        "spec": {"selector": {"matchLabels": selector(export)}, "podMetricsEndpoints": [endpoint]},
    }


def _prometheus_rule(export: Export) -> Document:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": metadata(export),
        "spec": prometheus.rules(export),
    }


def _dashboard(export: Export) -> Document:
    about = metadata(export, grafana_dashboard="1")
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**about, "name": f"{name_of(export)}-dashboard"},
        "data": {f"{name_of(export)}.json": json.dumps(grafana.dashboard(export), indent=1) + "\n"},
    }
