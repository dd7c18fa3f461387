"""A running server against its release: the canary and drift."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from evals.server import canary, client
from evals.server import drift as drifting
from evals.server.eval_environments import CANARY
from evals.server.session import Limits, Workspace
from qpack.core.console import Console
from qpack.core.findings import EffectiveDefaults
from qpack.core.records import Proof
from qpack.core.store import Store
from qpack.pipeline.planned_serving import contract, promise
from qpack.runtime import environments
from qpack.serve.served_release import Reached, Served
from registry.serving.serving_manifest import vllm_arguments


def prove(store: Store, server: Reached, console: Console) -> Proof:
    """Every check of the canary: what the release's manifest promises, or what any server does."""
    environment = environments.ensure(environments.resolve(CANARY, "cpu", store.home), store.home, console.report)
    if server.release is None:
        asked = canary.Promise(max_model_len=client.max_model_len(server.base_url, server.model))
    else:
        asked = promise(server.release.manifest)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(
            tools={"canary": environment},
            out=Path(folder),
            log=store.home / "logs" / "canary.log",
            progress=console.progress,
            limits=Limits(tool=1800),
        )
        return canary.prove(workspace, server.endpoint, asked)


def drift(url: str, served: Served) -> drifting.Drift:
    """How the server at `url` differs from the release."""
    base_url = url.rstrip("/").removesuffix("/v1")
    wanted = expected(served)
    seen = drifting.read_server(base_url, wanted.model)
    found = drifting.compare(wanted, seen)
    files = drifting.changed_files(seen.folder, served.files)
    return replace(found, differences=(*found.differences, *files.differences), unseen=(*found.unseen, *files.unseen))


def expected(served: Served) -> drifting.Expected:
    """What a server of this profile reports."""
    manifest = served.manifest
    return drifting.Expected(
        version=manifest.engine.version,
        model=manifest.model.served_model_name,
        max_model_len=manifest.max_model_len,
        flags=drifting.parse(vllm_arguments(manifest, "model", host="", port=1)),
        metrics=contract(manifest),
        environment=manifest.environment,
        defaults=_defaults(manifest.ran_with),
    )


def _defaults(ran: EffectiveDefaults | None) -> dict[str, str | bool]:
    if ran is None:
        return {}
    flags = {"kv-cache-dtype": ran.kv_cache_dtype, "enable-prefix-caching": ran.prefix_caching}
    return {flag: value for flag, value in flags.items() if value is not None}
