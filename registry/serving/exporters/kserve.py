"""KServe's LLMInferenceService (serving.kserve.io/v1alpha1): the model on a volume claim, routed by KServe.

https://kserve.github.io/website/docs/model-serving/generative-inference/llmisvc/llmisvc-configuration
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from registry.core.documents import Document, Json
from registry.serving.exporters import kubernetes, quoting
from registry.serving.exporters.export import UID, Export, Files, heading, name_of, serve, to_yaml
from registry.serving.serving_manifest import image_of

FILES = "`kserve.yaml`, an LLMInferenceService"
MODEL = "a volume claim"
NEEDS_REPOSITORY = False

# KServe sets port and name: it starts `vllm serve` on 8000 with the name of spec.model.
_OF_KSERVE = ("--served-model-name", "--host", "--port", "--tensor-parallel-size")


def files(export: Export) -> Files:
    """`kserve.yaml`. KServe starts vLLM; the manifest's flags are passed in VLLM_ADDITIONAL_ARGS."""
    name, folder = name_of(export), export.digest.removeprefix("sha256:")[:12]
    served = export.manifest.model.served_model_name
    # KServe puts it in double quotes into a command for bash.
    if not re.fullmatch(r"[\w.:/@+-]+", served, re.ASCII):
        raise quoting.unwritable("kserve", "model.served_model_name", "a character that is special to a shell")
    probes = export.manifest.probes
    more = {"name": "VLLM_ADDITIONAL_ARGS", "value": quoting.kubernetes(shlex.join(_flags(export)))}
    main: dict[str, Json] = {
        "name": "main",
        "image": image_of(export.manifest),
        "env": [*kubernetes.variables(export), more],
        "resources": kubernetes.resources(export),
        # Merged into KServe's probe, which gives up after ten minutes; path and scheme stay.
        "startupProbe": {"periodSeconds": 10, "failureThreshold": -(-probes.startup_budget_seconds // 10)},
        "securityContext": {"runAsNonRoot": True, "runAsUser": UID, **kubernetes.SAFE},
        # KServe's template mounts /home, /models and /dev/shm; vLLM writes to /tmp, as in kubernetes.yaml.
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    spec: dict[str, Json] = {
        "model": {"uri": f"pvc://{name}/{folder}/model", "name": served},
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
    fill = f"Fill the volume claim {name} once: qpack pull {export.reference} MOUNT/{folder}"
    return {"kserve.yaml": heading(export, fill) + to_yaml(_templated(service))}


def _templated(document: Document) -> Document:
    """KServe reads the whole object as a Go template (ReplaceVariables in its llmisvc controller)."""
    return {key: _escaped(value) for key, value in document.items()}


def _escaped(value: Json) -> Json:
    if isinstance(value, Mapping):
        return _templated(value)
    if isinstance(value, list | tuple):
        return [_escaped(inner) for inner in value]
    return quoting.go_template(value) if isinstance(value, str) else value


def _flags(export: Export) -> list[str]:
    """The flags that KServe doesn't set itself, without the model."""
    found: list[str] = []
    skip = False
    for word in serve(export, "model")[3:]:
        if word.startswith("--"):
            skip = word.partition("=")[0] in _OF_KSERVE
        if not skip:
            found.append(word)
    return found
