"""`vllm serve --config`: a YAML file with every flag, and a file of environment variables.

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

FILES = "`vllm.yaml` for `vllm serve --config`, `vllm.env`"
MODEL = "the folder `model`, or `--model`"
NEEDS_REPOSITORY = False
IMAGES: tuple[str, ...] = ()
CONFIG, VARIABLES = "vllm.yaml", "vllm.env"


def files(export: Export) -> Files:
    """`vllm.yaml` and `vllm.env`. The model's path is relative to the server's working directory."""
    flags = settings(export.manifest, export.model, host="127.0.0.1", port=export.port)
    use = f"Use: set -a; . ./{VARIABLES}; set +a; vllm serve --config {CONFIG}"
    given = {**export.manifest.environment, SAFE_PATH: "1"}
    variables = "".join(f"{name}={shlex.quote(value)}\n" for name, value in sorted(given.items()))
    return {
        CONFIG: heading(export, use, "After `qpack pull`, the model is in the folder `model`.")
        + to_yaml({flag: _value(flag, value) for flag, value in flags.items()}),
        VARIABLES: heading(export, "Set secrets (VLLM_API_KEY) where the server runs, not here.") + variables,
    }


def _value(flag: str, value: Argument) -> Json:
    """The value for vLLM's file. vLLM turns it into words of a command line, so texts with a leading dash would be
    flags, and lists are split.
    """
    if isinstance(value, list):
        known = flag_table.flags().get(flag)
        if known is not None and known.type == "json":
            return json.dumps(value)
        if known is not None and known.many != "list" and len(value) > 1:
            raise unwritable("vllm", f"arguments.{flag}", "several values, but its file holds one")
    words = value if isinstance(value, list) else [] if isinstance(value, Mapping) else [value]
    if any(str(word).startswith("-") and not isinstance(word, int) for word in words):
        raise unwritable("vllm", f"arguments.{flag}", "a leading dash, which vLLM would read as a flag")
    return value
