"""Values for the chart of vLLM's production stack: router, engine, monitoring.

https://github.com/vllm-project/production-stack (helm/values.schema.json)
"""

from __future__ import annotations

from registry.core.documents import Document, Json
from registry.serving.exporters import kubernetes, quoting
from registry.serving.exporters.export import (
    UID,
    Export,
    Files,
    flags_without,
    heading,
    model_path,
    name_of,
    repository_of,
    server_image,
    to_yaml,
)
from registry.serving.exporters.kubernetes import ORAS

FILES = "`values.yaml` for the chart vllm-stack"
MODEL = "pulled by digest, or a repository on the Hub"
NEEDS_REPOSITORY = False
IMAGES: tuple[str, ...] = (ORAS,)


def files(export: Export) -> Files:
    """`values.yaml`."""
    manifest, path = export.manifest, model_path(export)
    spec = kubernetes.pod(export)
    if export.hub is None:
        repository_of(export, "production-stack")
    pulls = [kubernetes.puller(export)] if export.hub is None else []
    image, _, digest = server_image(export).partition("@")
    repository, _, tag = image.rpartition(":")
    probes = manifest.probes
    url, _, revision = (export.hub or path).partition("@")
    mounts: list[Document] = [{"name": "tmp", "mountPath": "/tmp"}]
    volumes: list[Document] = [{"name": "tmp", "emptyDir": {}}]
    model: dict[str, Json] = {
        "name": name_of(export, _LONGEST),
        "repository": repository,
        "tag": f"{tag}@{digest}" if digest else tag,
        "modelURL": url,
        "replicaCount": 1,
        "resources": kubernetes.resources(export),
        "vllmConfig": {
            # The chart turns it off where this is missing.
            "enablePrefixCaching": manifest.arguments.get("enable-prefix-caching", True) is not False,
            "maxModelLen": manifest.max_model_len,
            "dtype": manifest.dtype,
            "tensorParallelSize": manifest.tensor_parallel,
            "extraArgs": [quoting.kubernetes(word) for word in flags_without(export, *_OF_CHART)],
        },
        "env": kubernetes.variables(export, fetches=export.hub is not None),
        "shmSize": "4Gi",
        **{key: spec[key] for key in ("affinity",) if key in spec},
    }
    if (chosen := spec.get("nodeSelector")) is not None:
        model["nodeSelectorTerms"] = [kubernetes.as_term(chosen)]
    if revision:
        model["modelRevision"] = revision
    if pulls:
        (pull,) = pulls
        kept = ("name", "image", "args", "env", "resources")
        model["initContainer"] = {
            **{key: pull[key] for key in kept},
            "mountPvcStorage": False,
            "extraVolumeMounts": pull["volumeMounts"],
        }
        volumes += kubernetes.pulled_volumes(export)
        mounts.append({"name": "model", "mountPath": path, "subPath": "model", "readOnly": True})
    model["extraVolumes"], model["extraVolumeMounts"] = volumes, mounts
    values: Document = {
        "servingEngineSpec": {
            "containerPort": export.port,
            "securityContext": {"runAsNonRoot": True, "runAsUser": UID, "runAsGroup": UID, "fsGroup": UID},
            "containerSecurityContext": kubernetes.SAFE,
            "startupProbe": {
                "initialDelaySeconds": 10,
                "periodSeconds": 10,
                "failureThreshold": -(-probes.startup_budget_seconds // 10),
                "httpGet": {"path": probes.health, "port": export.port},
            },
            "modelSpec": [model],
        },
    }
    use = "Use: helm install vllm vllm/vllm-stack -f values.yaml"
    return {"values.yaml": heading(export, use, kubernetes.login(export)) + to_yaml(values)}


_LONGEST = 40
"""The chart makes labels of at most 63 characters of it: `RELEASE-NAME-engine-service`, with `vllm` as RELEASE."""

# What the chart passes to `vllm serve`. The last of two values counts, so the rest is passed whole.
_OF_CHART = ("host", "port", "max-model-len", "dtype", "tensor-parallel-size")
