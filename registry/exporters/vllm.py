"""`vllm serve --config`: one YAML file with every flag, and the variables beside it.

https://docs.vllm.ai/en/stable/configuration/serve_args.html
"""

from __future__ import annotations

import shlex

from registry.exporters.export import Export, Files, heading, to_yaml
from registry.serving_manifest import settings

ABOUT = "a file for `vllm serve --config`, and one with its environment variables"
NEEDS_REPOSITORY = False
CONFIG, VARIABLES = "vllm.yaml", "vllm.env"


def files(export: Export) -> Files:
    """`vllm.yaml` and `vllm.env`. The path of the model is relative to where the server is started."""
    flags = settings(export.manifest, export.model, host="127.0.0.1", port=export.port)
    use = f"Use: set -a; . ./{VARIABLES}; set +a; vllm serve --config {CONFIG}"
    variables = "".join(f"{name}={shlex.quote(value)}\n" for name, value in sorted(export.manifest.environment.items()))
    return {
        CONFIG: heading(export, use, "Where pulled with `qpack pull`, the model is in the folder `model`.")
        + to_yaml(flags),
        VARIABLES: heading(export, "A secret (VLLM_API_KEY) is set where the server runs, and never here.") + variables,
    }
