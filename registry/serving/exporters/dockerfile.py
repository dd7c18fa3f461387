"""A container image with the model in it: vLLM's image, a layer with the model, not root, a health check.

https://docs.docker.com/reference/dockerfile/
"""

from __future__ import annotations

import json

from registry.serving.exporters import compose, quoting
from registry.serving.exporters.export import (
    UID,
    Export,
    Files,
    container_environment,
    heading,
    model_path,
    serve,
    server_image,
)

FILES = "`Dockerfile`, `.dockerignore`"
MODEL = "a layer of the image"
NEEDS_REPOSITORY = False
IMAGES: tuple[str, ...] = ()


def files(export: Export) -> Files:
    """`Dockerfile`, to be built in the folder of a pulled release, and a `.dockerignore` that sends the model alone."""
    path, probes = model_path(export), export.manifest.probes
    command = serve(export, path)
    check = [*compose.CHECK, f"http://127.0.0.1:{export.port}{probes.health}"]
    labels = {
        "org.opencontainers.image.ref.name": export.reference,
        "org.qpack.digest": export.digest,
        "org.qpack.profile": export.profile,
    }
    lines = [
        f"FROM {server_image(export)}",
        *(f"LABEL {name}={quoting.dockerfile(value, name)}" for name, value in labels.items()),
        f"COPY {json.dumps(['model/', f'{path}/'])}",
        *(
            f"ENV {name}={quoting.dockerfile(value, f'environment.{name}')}"
            for name, value in sorted(container_environment(export).items())
        ),
        f"USER {UID}:{UID}",
        "WORKDIR /tmp",
        f"EXPOSE {export.port}",
        f"HEALTHCHECK --interval=15s --timeout=10s --retries=3 --start-period={probes.startup_budget_seconds}s \\",
        f"  CMD {json.dumps(check)}",
        f"ENTRYPOINT {json.dumps(command)}",
    ]
    use = (
        f"Use: qpack pull {export.reference} DIR; copy this file and .dockerignore to DIR; docker build DIR.",
        "Run it with --read-only --tmpfs /tmp:exec --shm-size 4g; secrets (VLLM_API_KEY) are set where it runs.",
    )
    return {"Dockerfile": heading(export, *use) + "\n".join(lines) + "\n", ".dockerignore": "*\n!model/\n"}
