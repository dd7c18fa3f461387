"""Values for llm-d's chart llm-d-modelservice: pods that the inference scheduler routes to.

https://github.com/llm-d-incubation/llm-d-modelservice (values.schema.json)
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
    name_of,
    quantity,
    server_image,
    to_yaml,
)

FILES = "`values.yaml` for the chart llm-d-modelservice"
MODEL = "a volume claim, or a repository on the Hub"
NEEDS_REPOSITORY = False
IMAGES: tuple[str, ...] = ()

# What the chart passes to `vllm serve`.
_OF_CHART = ("served-model-name", "port", "tensor-parallel-size", "data-parallel-size")


def files(export: Export) -> Files:
    """`values.yaml`."""
    manifest, name = export.manifest, name_of(export)
    folder = export.digest.removeprefix("sha256:")[:12]
    if export.hub is not None:
        repository, _, revision = export.hub.partition("@")
        uri, fill = f"hf://{repository}", ""
        more = [f"--revision={revision}"] if revision else []
    else:
        uri, more = f"pvc://{name}/{folder}/model", []
        fill = f"Fill the volume claim {name} once: qpack pull {export.reference} MOUNT/{folder}"
    probes = manifest.probes
    server: dict[str, Json] = {
        "name": "vllm",
        "image": server_image(export),
        "modelCommand": "vllmServe",
        "args": [quoting.kubernetes(word) for word in (*flags_without(export, *_OF_CHART), *more)],
        "env": kubernetes.variables(export, fetches=export.hub is not None),
        "ports": [{"name": "metrics", "containerPort": export.port, "protocol": "TCP"}],
        "resources": kubernetes.cores_and_memory(export),
        "startupProbe": {
            "httpGet": {"path": probes.health, "port": export.port},
            "periodSeconds": 10,
            "failureThreshold": -(-probes.startup_budget_seconds // 10),
        },
        "securityContext": {"runAsNonRoot": True, "runAsUser": UID, **kubernetes.SAFE},
        "mountModelVolume": True,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "shm", "mountPath": "/dev/shm"}],
    }
    volumes: list[Document] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "4Gi"}},
    ]
    decode: dict[str, Json] = {
        "create": True,
        "replicas": 1,
        "parallelism": {"tensor": manifest.tensor_parallel, "data": manifest.data_parallel,
                        "dataLocal": manifest.data_parallel, "workers": 1},
        "containers": [server],
        "volumes": volumes,
        "monitoring": {"podmonitor": {"enabled": True, "portName": "metrics", "path": "/metrics", "interval": "15s"}},
    }  # fmt: skip
    if manifest.devices:
        families = kubernetes.families(export)
        decode["acceleratorTypes"] = {"labelKey": "nvidia.com/gpu.family", "labelValues": list(families)}
    elif chosen := kubernetes.placement(export).get("nodeSelector"):
        decode["nodeSelector"] = chosen
    size = export.host.weights_bytes or 0
    values: Document = {
        "multinode": False,
        "modelArtifacts": {
            "name": manifest.model.served_model_name,
            "uri": uri,
            # For weights from the Hub; the other files are small.
            "size": quantity(size + size // 10 + 2**30),
            "labels": {"llm-d.ai/inference-serving": "true", "llm-d.ai/model": name},
        },
        "accelerator": {"type": "nvidia" if manifest.devices else "cpu"},
        "routing": {"servicePort": export.port, "proxy": {"enabled": False, "targetPort": export.port}},
        "decode": decode,
        "prefill": {"create": False},
    }
    use = f"Use: helm install {name} llm-d-modelservice/llm-d-modelservice -f values.yaml"
    return {"values.yaml": heading(export, use, *filter(None, [fill])) + to_yaml(values)}
