"""A `docker run` command: not root, only /tmp writable, the model read-only."""

from __future__ import annotations

import shlex

from registry.serving.exporters.export import (
    UID,
    Export,
    Files,
    container_environment,
    heading,
    model_path,
    name_of,
    secrets,
    serve,
    server_image,
)
from registry.serving.exporters.quoting import unwritable
from registry.serving.serving_manifest import flag_lines

FILES = "`docker-run.sh FOLDER`"
MODEL = "the folder, read-only"
NEEDS_REPOSITORY = False
IMAGES: tuple[str, ...] = ()


def files(export: Export) -> Files:
    """`docker-run.sh FOLDER`, with the model's folder."""
    path, image = model_path(export), server_image(export)
    if image.startswith("-"):
        raise unwritable("docker", "engine.image", "a leading dash, which docker would read as an option")
    options = [
        ["--rm", "--init"],
        ["--name", name_of(export)],
        ["--user", f"{UID}:{UID}"],
        ["--read-only", "--tmpfs", "/tmp:rw,exec,mode=1777"],
        ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"],
        ["--shm-size", "4g"],
        ["--publish", f"127.0.0.1:{export.port}:{export.port}"],
        *([["--gpus", str(export.manifest.devices)]] if export.manifest.devices else []),
        *(["--env", f"{name}={value}"] for name, value in sorted(container_environment(export).items())),
        *(["--env", name] for name in secrets(export)),
        ["--entrypoint", "vllm"],
    ]
    lines = [f"  {shlex.join(option)}" for option in options]
    lines.append(f'  --volume "$model":{shlex.quote(f"{path}:ro")}')
    lines.append(f"  {shlex.quote(image)}")
    lines += [f"  {line}" for line in flag_lines(serve(export, path)[1:], shlex.quote)]
    given = " and ".join(secrets(export))
    use = f"Use: docker-run.sh FOLDER, the folder model/ of a pulled release. Passed through if set: {given}."
    return {
        "docker-run.sh": "#!/bin/sh\n"
        + heading(export, use)
        + 'set -eu\nmodel=$(realpath "${1:?the model folder of the pulled release}")\nexec docker run \\\n'
        + " \\\n".join(lines)
        + "\n"
    }
