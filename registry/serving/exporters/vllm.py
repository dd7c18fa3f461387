"""`vllm serve --config`: one YAML file with every flag, and the variables beside it.

https://docs.vllm.ai/en/stable/configuration/serve_args.html
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping

from registry.core.documents import Json
from registry.serving import flag_table
from registry.serving.exporters.export import Export, Files, heading, to_yaml
from registry.serving.exporters.quoting import unwritable
from registry.serving.manifest_fields import Argument
from registry.serving.serving_manifest import SAFE_PATH, settings

ABOUT = "a file for `vllm serve --config`, and one with its environment variables"
NEEDS_REPOSITORY = False
CONFIG, VARIABLES = "vllm.yaml", "vllm.env"


def files(export: Export) -> Files:
    """`vllm.yaml` and `vllm.env`. The path of the model is relative to where the server is started."""
    flags = settings(export.manifest, export.model, host="127.0.0.1", port=export.port)
    use = f"Use: set -a; . ./{VARIABLES}; set +a; vllm serve --config {CONFIG}"
    given = {**export.manifest.environment, SAFE_PATH: "1"}
    variables = "".join(f"{name}={shlex.quote(value)}\n" for name, value in sorted(given.items()))
    return {
        CONFIG: heading(export, use, "Where pulled with `qpack pull`, the model is in the folder `model`.")
        + to_yaml({flag: _value(flag, value) for flag, value in flags.items()}),
        VARIABLES: heading(export, "Set secrets (VLLM_API_KEY) where the server runs, not here.") + variables,
    }


def _value(flag: str, value: Argument) -> Json:
    """The value as vLLM can read it from the file: it makes words of a command line of it, so that a text with a dash
    in front would be a flag, and it takes lists apart.
    """
    if isinstance(value, list):
        known = flag_table.flags().get(flag)
        if known is not None and known.type == "json":
            return json.dumps(value)
        if known is not None and known.many != "list" and len(value) > 1:
            raise unwritable("vllm", f"arguments.{flag}", "several values, and its file can hold one")
    words = value if isinstance(value, list) else [] if isinstance(value, Mapping) else [value]
    if any(str(word).startswith("-") and not isinstance(word, int) for word in words):
        raise unwritable("vllm", f"arguments.{flag}", "a dash in front, and vLLM would take it for a flag")
    return value
