"""Kubernetes: Deployment, Service and ServiceAccount; PodMonitor, PrometheusRule and the dashboard.

The pod meets the Pod Security Standards' "restricted" profile
(https://kubernetes.io/docs/concepts/security/pod-security-standards/). The model is pinned by digest: an init container
pulls it, or the kubelet mounts it as an image volume.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

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
    pinned,
    quantity,
    secrets,
    serve,
    server_image,
    to_yaml,
)

FILES = "`kubernetes.yaml`; `monitoring.yaml` (PodMonitor, PrometheusRule, dashboard)"
MODEL = "pulled by digest, or an image volume"
NEEDS_REPOSITORY = True
ORAS = "ghcr.io/oras-project/oras:v1.2.3"
IMAGES: tuple[str, ...] = (ORAS,)

IMAGE_FOLDER = "models"
"""The model's folder in an OCI image, where KServe looks for it too."""

SAFE: Document = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def files(export: Export) -> Files:
    """`kubernetes.yaml`, and `monitoring.yaml` for clusters that run the Prometheus operator."""
    name = name_of(export)
    key = f"Optional API key: kubectl create secret generic {name} --from-literal=api-key=..."
    operator = "For clusters with the Prometheus operator. Grafana's sidecar finds the dashboard by its label."
    return {
        "kubernetes.yaml": heading(export, key, login(export), *_unmeasured(export))
        + to_yaml(account(export), _deployment(export), service(export, selector(export))),
        "monitoring.yaml": heading(export, operator)
        + to_yaml(_pod_monitor(export), _prometheus_rule(export), _dashboard(export)),
    }


def login(export: Export) -> str:
    """How a registry with passwords is pulled from, as a comment."""
    return (
        f"A registry that asks for a password: kubectl create secret docker-registry {_registry_secret(export)}"
        f" --docker-server={(export.repository or '').partition('/')[0]} --docker-username=... --docker-password=..."
    )


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


@dataclass(frozen=True)
class Place:
    """A pod's part of a server: its GPUs, the flags that say which part it is, and whether it answers requests."""

    gpus: int
    flags: tuple[str, ...] = ()
    serves: bool = True


def pod(export: Export, place: Place | None = None) -> Document:
    """The pod's spec. `place` None is the whole server."""
    place = place or Place(export.manifest.devices)
    volume, inits = _model(export, place.gpus)
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
    else:
        # The kubelet pulls image volumes with the pod's secrets.
        spec["imagePullSecrets"] = [{"name": _registry_secret(export)}]
    spec["containers"] = [container(export, place)]
    tmp: Document = {"name": "tmp", "emptyDir": {}}
    shm: Document = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "4Gi"}}
    volumes = [volume, tmp, shm, *([_login_volume(export)] if inits else [])]
    return {**spec, "volumes": volumes, **placement(export)}


def _login_volume(export: Export) -> Document:
    config: Document = {"key": ".dockerconfigjson", "path": "config.json"}
    secret: Document = {"secretName": _registry_secret(export), "optional": True, "items": [config]}
    return {"name": "registry", "secret": secret}


def pulled_volumes(export: Export) -> list[Document]:
    """The volumes that `puller` mounts, beside one for temporary files."""
    return [{"name": "model", "emptyDir": {}}, _login_volume(export)]


# The first compute capability of each generation of GPUs.
_CAPABILITY = {"ampere": (8, 0), "ada": (8, 9), "hopper": (9, 0), "blackwell": (10, 0)}


def placement(export: Export) -> Document:
    """Which nodes have what the kernels need, by the labels of Node Feature Discovery and of NVIDIA's GPU Feature
    Discovery. A GPU is of the manifest's target or newer; nodes like the measured one come first.

    https://kubernetes-sigs.github.io/node-feature-discovery/stable/usage/features.html,
    https://github.com/NVIDIA/k8s-device-plugin/tree/main/docs/gpu-feature-discovery
    """
    manifest = export.manifest
    if manifest.hardware == "cpu":
        # vLLM's image for CPUs is for x86.
        own = {} if manifest.engine.image else {"kubernetes.io/arch": "amd64"}
        kernels = {"feature.node.kubernetes.io/cpu-cpuid.AVX512F": "true"} if export.host.avx512 else {}
        return {"nodeSelector": {**own, **kernels}} if own or kernels else {}
    oldest = _CAPABILITY.get(manifest.target or manifest.hardware)
    if oldest is None:
        return {}
    affinity: dict[str, Json] = {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": _at_least(*oldest)}
    }
    if (measured := _CAPABILITY.get(manifest.hardware)) is not None:
        # Objectives were measured on this generation.
        same = _matching(("compute.major", "In", measured[0]))
        affinity["preferredDuringSchedulingIgnoredDuringExecution"] = [{"weight": 100, "preference": same}]
    return {"affinity": {"nodeAffinity": affinity}}


def families(export: Export) -> tuple[str, ...]:
    """Generations of GPUs of the manifest's target or newer, as GPU Feature Discovery names them."""
    names = list(_CAPABILITY)
    oldest = export.manifest.target or export.manifest.hardware
    return tuple("ada-lovelace" if name == "ada" else name for name in names[names.index(oldest) :]
                 ) if oldest in names else ()  # fmt: skip


def as_term(chosen: Json) -> Document:
    """A node selector as a term of a node affinity."""
    assert isinstance(chosen, Mapping)
    return {"matchExpressions": [{"key": key, "operator": "In", "values": [value]} for key, value in chosen.items()]}


def _at_least(major: int, minor: int) -> list[Document]:
    """Terms, of which one has to hold, for a compute capability of at least `major.minor`."""
    if minor == 0:
        return [_matching(("compute.major", "Gt", major - 1))]
    same = _matching(("compute.major", "In", major), ("compute.minor", "Gt", minor - 1))
    return [_matching(("compute.major", "Gt", major)), same]


def _matching(*wanted: tuple[str, str, int]) -> Document:
    found: list[Document] = [
        {"key": f"nvidia.com/gpu.{label}", "operator": operator, "values": [str(value)]}
        for label, operator, value in wanted
    ]
    return {"matchExpressions": found}


def _registry_secret(export: Export) -> str:
    return f"{name_of(export)}-registry"


def _unmeasured(export: Export) -> list[str]:
    if export.host.resident_bytes is not None:
        return []
    return ["The memory of this profile's processes was not measured: set requests and limits of memory."]


def container(export: Export, place: Place) -> Document:
    """The server's container. One that answers no requests has no probes and no port."""
    path = model_path(export)
    command = serve(export, path)
    return {
        "name": "vllm",
        "image": server_image(export),
        "command": command[:2],
        "args": [*(quoting.kubernetes(word) for word in command[2:]), *place.flags],
        "env": variables(export),
        **(_answering(export) if place.serves else {}),
        "resources": resources(export, place.gpus),
        "securityContext": SAFE,
        "volumeMounts": [
            {"name": "model", "mountPath": path, **_inside(export), "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }  # fmt: skip


def _answering(export: Export) -> Document:
    probes = export.manifest.probes
    return {
        "ports": [{"name": "http", "containerPort": export.port}],
        "startupProbe": _probe(probes.health, 10, -(-probes.startup_budget_seconds // 10)),
        "readinessProbe": _probe(probes.health, 10, 3),
        "livenessProbe": _probe(probes.health, 20, 5),
    }


def variables(export: Export, *, fetches: bool = False) -> list[Document]:
    """The server's environment, with optional references to secrets; see `export.container_environment`."""
    plain: list[Document] = [
        {"name": name, "value": quoting.kubernetes(value)}
        for name, value in sorted(container_environment(export, fetches=fetches).items())
    ]
    hidden: list[Document] = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": name_of(export), "key": key, "optional": True}}}
        for name, key in secrets(export, fetches=fetches).items()
    ]
    return [*plain, *hidden]


def resources(export: Export, gpus: int | None = None) -> Document:
    """GPUs (None for all of the server's), cores and host memory of a pod."""
    count = export.manifest.devices if gpus is None else gpus
    requests, limits = _cores_and_memory(export, count)
    if count:
        devices = {"nvidia.com/gpu": str(count)}
        requests, limits = {**requests, **devices}, {**limits, **devices}
    return {"requests": requests, **({"limits": limits} if limits else {})}


def cores_and_memory(export: Export) -> Document:
    """As `resources`, without GPUs."""
    requests, limits = _cores_and_memory(export, export.manifest.devices)
    return {"requests": requests, **({"limits": limits} if limits else {})}


def _cores_and_memory(export: Export, gpus: int) -> tuple[dict[str, Json], dict[str, Json]]:
    """Requests and limits: the cores and the peak memory that were measured, a quarter more memory as the limit.

    With GPUs, vLLM needs a core for the API server, one for its engine and one per GPU
    (https://docs.vllm.ai/en/stable/configuration/optimization/#cpu-resources-for-gpu-deployments).
    """
    host = export.host
    cores = 2 + gpus if gpus else host.cores
    requests: dict[str, Json] = {"cpu": str(cores)} if cores else {}
    if host.resident_bytes is None:
        return requests, {}
    limit = host.resident_bytes + max(host.resident_bytes // 4, 2**30)
    return {**requests, "memory": quantity(host.resident_bytes)}, {"memory": quantity(limit)}


def _inside(export: Export) -> dict[str, str]:
    """The model's folder in its volume."""
    if export.mount == "pull":
        return {"subPath": "model"}
    return {"subPath": IMAGE_FOLDER} if export.image is not None else {}


def _model(export: Export, gpus: int) -> tuple[Document, list[Document]]:
    """The volume that holds the model, and the init containers that fill it."""
    if export.mount == "image":
        whole = f"{export.repository}@{export.image or export.digest}"
        return {"name": "model", "image": {"reference": whole, "pullPolicy": "IfNotPresent"}}, []
    return {"name": "model", "emptyDir": {}}, [puller(export, gpus)]


def puller(export: Export, gpus: int | None = None) -> Document:
    """The init container that pulls the release, of a pod with so many GPUs (None for the whole server's)."""
    source = f"{export.repository}@{export.digest}"
    # Of a pod, the larger of init containers and containers counts: its share of cores and memory costs nothing more.
    requests, limits = _cores_and_memory(export, export.manifest.devices if gpus is None else gpus)
    if export.host.weights_bytes is not None:
        requests["ephemeral-storage"] = quantity(export.host.weights_bytes)
    return {
        "name": "pull",
        "image": pinned(export, ORAS),
        "args": ["pull", source, "--output", "/model"],
        # oras reads passwords from config.json in this folder, if the secret is there.
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "DOCKER_CONFIG", "value": "/registry"}],
        "resources": {"requests": requests, **({"limits": limits} if limits else {})},
        "securityContext": SAFE,
        "volumeMounts": [
            {"name": "model", "mountPath": "/model"},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "registry", "mountPath": "/registry", "readOnly": True},
        ],
    }


def _probe(path: str, period: int, failures: int) -> Document:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def account(export: Export) -> Document:
    """The pod's account, which may do nothing."""
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


def service(export: Export, chosen: Mapping[str, str]) -> Document:
    """A Service of the `chosen` pods."""
    port: Document = {"name": "http", "port": export.port, "targetPort": "http"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(export),
        "spec": {"selector": dict(chosen), "ports": [port]},
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
