"""KServe's LLMInferenceService (serving.kserve.io/v1alpha1): the model in an OCI image, on the Hub or on a volume
claim, routed by KServe.

https://kserve.github.io/website/docs/model-serving/generative-inference/llmisvc/llmisvc-configuration
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from registry.core.documents import Document, Json
from registry.serving.exporters import kubernetes, quoting
from registry.serving.exporters.export import UID, Export, Files, flags_without, heading, name_of, server_image, to_yaml

FILES = "`kserve.yaml`, an LLMInferenceService"
MODEL = "an OCI image, a repository on the Hub, or a volume claim"
NEEDS_REPOSITORY = False
IMAGES: tuple[str, ...] = ()

# KServe sets port and name: it starts `vllm serve` on 8000 with the name of spec.model.
_OF_KSERVE = ("served-model-name", "host", "port", "tensor-parallel-size")


def files(export: Export) -> Files:
    """`kserve.yaml`. KServe starts vLLM; the manifest's flags are passed in VLLM_ADDITIONAL_ARGS."""
    uri, fill = _model(export)
    served = export.manifest.model.served_model_name
    # KServe puts it in double quotes into a command for bash.
    if not re.fullmatch(r"[\w.:/@+-]+", served, re.ASCII):
        raise quoting.unwritable("kserve", "model.served_model_name", "a character that is special to a shell")
    probes = export.manifest.probes
    more = {"name": "VLLM_ADDITIONAL_ARGS", "value": quoting.kubernetes(shlex.join(flags_without(export, *_OF_KSERVE)))}
    main: dict[str, Json] = {
        "name": "main",
        "image": server_image(export),
        "env": [*kubernetes.variables(export), more],
        "resources": kubernetes.resources(export),
        # Merged into KServe's probe, which gives up after ten minutes; path and scheme stay.
        "startupProbe": {"periodSeconds": 10, "failureThreshold": -(-probes.startup_budget_seconds // 10)},
        "securityContext": {"runAsNonRoot": True, "runAsUser": UID, **kubernetes.SAFE},
        # KServe's template mounts /home, /models and /dev/shm; vLLM writes to /tmp, as in kubernetes.yaml.
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    spec: dict[str, Json] = {
        "model": {"uri": uri, "name": served},
        "replicas": 1,
        "template": {
            "containers": [main],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
            **kubernetes.placement(export),
        },
        "router": {"gateway": {}, "route": {}, "scheduler": {}},
    }
    if export.manifest.tensor_parallel > 1:
        spec["parallelism"] = {"tensor": export.manifest.tensor_parallel}
    service: Document = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "LLMInferenceService",
        "metadata": kubernetes.metadata(export),
        "spec": spec,
    }
    return {"kserve.yaml": heading(export, fill) + to_yaml(_templated(service))}


def _model(export: Export) -> tuple[str, str]:
    """Where KServe gets the model, and what has to be done for it: an image in a registry, else a repository on the
    Hub, else a volume claim.
    """
    if export.image is not None and export.repository is not None:
        # KServe mounts the image as a volume. `oci://` starts a container of it, which needs a shell in it.
        return f"oci+native://{export.repository}@{export.image}", "The cluster has to have image volumes."
    if export.hub is not None:
        return f"hf://{export.hub.replace('@', ':')}", "A gated repository needs a token: see KServe's storage secrets."
    name, folder = name_of(export), export.digest.removeprefix("sha256:")[:12]
    fill = f"Fill the volume claim {name} once: qpack pull {export.reference} MOUNT/{folder}"
    return f"pvc://{name}/{folder}/model", fill


def _templated(document: Document) -> Document:
    """KServe reads the whole object as a Go template (ReplaceVariables in its llmisvc controller)."""
    return {key: _escaped(value) for key, value in document.items()}


def _escaped(value: Json) -> Json:
    if isinstance(value, Mapping):
        return _templated(value)
    if isinstance(value, list | tuple):
        return [_escaped(inner) for inner in value]
    return quoting.go_template(value) if isinstance(value, str) else value
