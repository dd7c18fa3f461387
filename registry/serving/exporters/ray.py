"""Ray Serve: an LLMConfig inside a Serve application, for one node or several.

https://docs.ray.io/en/latest/serve/llm/index.html; `serve deploy serve.yaml` reads it (ray.serve.schema).
"""

from __future__ import annotations

import re

from registry.core.documents import Document, Json
from registry.serving.exporters.export import Export, Files, heading, name_of, to_yaml
from registry.serving.exporters.quoting import unwritable
from registry.serving.serving_manifest import settings

FILES = "`serve.yaml` with an LLMConfig, for `serve deploy`"
MODEL = "a folder on every node"
NEEDS_REPOSITORY = False
IMAGES: tuple[str, ...] = ()

_EXPANDED = re.compile(r"\$[\w{]")
# What Ray Serve sets itself.
_OF_RAY = ("model", "served-model-name", "host", "port")


def files(export: Export) -> Files:
    """`serve.yaml`. `engine_kwargs` are the manifest's flags with underscores, as vLLM's engine takes them."""
    manifest = export.manifest
    for name, value in manifest.environment.items():
        # os.path.expandvars in ray/_private/utils.py can't escape a dollar.
        if _EXPANDED.search(value):
            raise unwritable("ray", f"environment.{name}", "a dollar, which Ray reads as a variable")
    offline = {} if manifest.draft else {"HF_HUB_OFFLINE": "1"}
    flags = settings(manifest, export.model, host="", port=export.port)
    engine = {flag.replace("-", "_"): value for flag, value in flags.items() if flag not in _OF_RAY}
    config: dict[str, Json] = {
        "model_loading_config": {"model_id": manifest.model.served_model_name, "model_source": export.model},
        "engine_kwargs": engine,
        "deployment_config": {"num_replicas": 1},
        "runtime_env": {"env_vars": {**offline, **manifest.environment}},
    }
    if not manifest.devices:
        config["accelerator_config"] = {"kind": "cpu"}
    application: Document = {
        "name": name_of(export),
        "route_prefix": "/",
        "import_path": "ray.serve.llm:build_openai_app",
        "args": {"llm_configs": [config]},
    }
    whole: Document = {"http_options": {"host": "127.0.0.1", "port": export.port}, "applications": [application]}
    use = "Use: serve deploy serve.yaml. Every node needs the model's folder at the same path."
    return {"serve.yaml": heading(export, use) + to_yaml(whole)}
