"""A running server against its release: the canary and drift. Joins what a manifest says with who asks for it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from evals import client, probes
from evals import drift as drifting
from qpack import serve
from qpack.serve import Reached, Served
from qpack.store import Store
from registry import metrics
from registry.serving_manifest import ServingManifest, vllm_arguments


def promise(server: Reached) -> probes.Promise:
    """What is asked of a server: all that its manifest says, or what any server of a chat model does."""
    asked = {"base_url": server.base_url, "model": server.model, "chat": server.chat}
    if server.release is None:
        longest = client.max_model_len(server.base_url, server.model)
        return probes.Promise.model_validate({**asked, "max_model_len": longest})
    manifest = server.release.manifest
    return probes.Promise.model_validate(
        {
            **asked,
            "max_model_len": manifest.max_model_len,
            "tools": bool(manifest.arguments.get("enable-auto-tool-choice")),
            "prefix_caching": manifest.arguments.get("enable-prefix-caching", True) is not False,
            "drafting": bool(manifest.json_argument("speculative-config")),
            "metrics": contract(manifest),
        }
    )


def contract(manifest: ServingManifest) -> tuple[str, ...]:
    """The manifest's own list and that of its arguments: a profile may draft where the measured server didn't."""
    return tuple(dict.fromkeys((*manifest.metrics, *metrics.contract(manifest))))


def prove(store: Store, server: Reached, tell: Callable[[str], None]) -> tuple[probes.Check, ...]:
    """Every check of the canary, by the openai SDK of vLLM's environment."""
    environment = serve.environment(store, tell)
    with tempfile.TemporaryDirectory() as folder:
        return probes.prove(
            environment,
            promise(server),
            out=Path(folder),
            log=store.home / "logs" / "canary.log",
            progress=lambda _done, _total, _what: None,
        )


def drift(url: str, served: Served) -> drifting.Drift:
    """How the server at `url` differs from the release."""
    base_url = url.rstrip("/").removesuffix("/v1")
    wanted = expected(served)
    return drifting.compare(wanted, drifting.look(base_url, wanted.model))


def expected(served: Served) -> drifting.Expected:
    """What a server of this profile says of itself."""
    manifest = served.manifest
    return drifting.Expected(
        version=manifest.engine.version,
        model=manifest.model.served_model_name,
        max_model_len=manifest.max_model_len,
        tensor_parallel=max(1, manifest.devices),
        flags=drifting.parse(vllm_arguments(manifest, "model", host="", port=1)),
        metrics=contract(manifest),
    )
