"""`qpack batch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, MaxTokens, Profile, Target, Temperature, TrustRelease
from qpack.cli.places import at_hand


def batch(
    target: Target,
    prompts: Annotated[
        Path,
        typer.Argument(metavar="PROMPTS", help="One request per line: OpenAI batch, JSON or text.", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="File to append answers to, in order.", show_default=False),
    ],
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Concurrent requests.")] = 16,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.0,
    profile: Profile = None,
    trust_release: TrustRelease = False,
    as_json: AsJson = False,
) -> None:
    """Answer a file of prompts; resumes.

    The same command resumes a stopped run.
    """
    from evals.server import batch as batches
    from evals.server.client import Endpoint, Sampling
    from qpack.cli.render import batch as present
    from qpack.core.console import open_console
    from qpack.serve import served_release

    options.existing(prompts, "PROMPTS")
    store, registry = options.store(), options.registry_folder()
    if not served_release.is_url(target):
        # Errors in the file are reported before a server is started; none is started if all answers are there.
        asked = batches.read(prompts, Endpoint("", "", chat=True), Sampling(max_tokens)).requests
        if (before := batches.finished(output, asked)) == len(asked):
            present.answered(batches.Done(before, before, 0), output, as_json=as_json)
            return
    reached = served_release.reached(store, registry, at_hand(target), profile, options.report, trusted=trust_release)
    with reached as server, open_console() as console:
        read = batches.read(prompts, server.endpoint, Sampling(max_tokens, temperature))
        console.stage(1, 1, "batch", f"{len(read.requests)} requests to {server.model}")
        done = batches.run(server.base_url, read, output, concurrency=concurrency, progress=console.progress)
        console.end(f"{done.total - done.before} answers")
    present.answered(done, output, as_json=as_json)
