"""Commands that run a release, or write down how somebody else runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, TrustRelease, Verbose
from qpack.cli.places import AnyRef, at_hand, repository_of

Profile = Annotated[
    str | None,
    typer.Option("--profile", help="A profile of the release; the default is the one measured.", show_default=False),
]
Target = Annotated[
    str,
    typer.Argument(
        metavar="REF|URL",
        help="A release, which is started (and pulled first, if it is named by hf:// or oci://), or a running server.",
        show_default=False,
    ),
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")]
Temperature = Annotated[float, typer.Option("--temperature", min=0.0, help="0 takes the most probable token.")]
Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="The server's port.")]


def export(
    ref: AnyRef,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="vllm, docker, compose, kubernetes, kserve, ray, systemd, prometheus or grafana.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where to write the files.", show_default=False),
    ] = None,
    profile: Profile = None,
    port: Port = 8000,
    repository: Annotated[
        str | None,
        typer.Option(
            "--repository", help="The OCI repository that holds the release (kubernetes).", show_default=False
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", metavar="PATH", help="The model's folder where it is served (vllm, ray).")
    ] = "model",
    mount: Annotated[
        Literal["pull", "image"],
        typer.Option("--mount", help="How a pod gets the model: an init container, or an image volume."),
    ] = "pull",
    trust_release: TrustRelease = False,
    as_json: AsJson = False,
) -> None:
    """Write how a release is served in another program's format; one file goes to stdout without --output."""
    from qpack.cli.render import serving as present
    from qpack.serve import served_release as serve

    release = serve.find(options.registry_folder(), at_hand(ref), profile)
    serve.check_trust(release, trust_release)
    wanted = serve.Wanted(to, port=port, repository=repository or repository_of(ref), model=model, mount=mount)
    present.exported(release, serve.export(release, wanted), output, as_json=as_json)


def serve(
    ref: AnyRef,
    profile: Profile = None,
    port: Port = 8000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and start nothing.")] = False,
    trust_release: TrustRelease = False,
    verbose: Verbose = False,
) -> None:
    """Start vLLM on this machine as the release's serving manifest says; Ctrl-C stops it."""
    from qpack.cli.render import serving as present
    from qpack.core.console import open_console
    from qpack.serve import served_release

    store, registry = options.store(), options.registry_folder()
    served = served_release.find(registry, at_hand(ref), profile)
    served_release.check_trust(served, trust_release)
    if dry_run:
        present.command_of(served, served_release.model_folder(store, served), port)
        return
    served_release.check_hardware(served)
    model = served_release.pull(store, registry, served)
    vllm = served_release.environment(store, options.tell, target=served.manifest.hardware)
    vllm = served_release.reaching(vllm, served.manifest, trust_release)
    with open_console(verbose=verbose) as console:
        console.stage(1, 1, "serve", f"{served.reference}, profile {served.profile}")
        with served_release.running(store, served, model, vllm, port, console) as server:
            console.end(f"ready after {server.start_seconds:.1f} s")
            present.serving(served, server)
            served_release.watch(server)


def chat(
    target: Target,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT]", help="One prompt; without it, a conversation.", show_default=False),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="A system message.", show_default=False)] = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.0,
    profile: Profile = None,
    trust_release: TrustRelease = False,
) -> None:
    """Talk to a release, or to a running server; the answer is printed as it comes."""
    from qpack.cli.render import serving as present
    from qpack.serve import served_release

    store, registry, trusted = options.store(), options.registry_folder(), trust_release
    with served_release.reached(store, registry, at_hand(target), profile, options.tell, trusted=trusted) as server:
        present.conversation(server, prompt, system, max_tokens=max_tokens, temperature=temperature)


def batch(
    target: Target,
    prompts: Annotated[
        Path,
        typer.Argument(
            help="One request a line: OpenAI's batch format, JSON with a prompt, or text.", show_default=False
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where answers are appended, in order.", show_default=False)
    ],
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Requests in flight.")] = 16,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.0,
    profile: Profile = None,
    trust_release: TrustRelease = False,
    as_json: AsJson = False,
) -> None:
    """Answer a file of prompts; a run that was stopped goes on where it was."""
    from evals.server import batch as batches
    from qpack.cli.render import serving as present
    from qpack.core.console import open_console
    from qpack.serve import served_release

    store, registry = options.store(), options.registry_folder()
    if not served_release.is_url(target):
        # What can't be used is told before a server is started for it, and none is where nothing is left to ask.
        _, asked = batches.read(prompts, model="", chat=True, max_tokens=max_tokens, temperature=0.0)
        if (before := batches.finished(output, asked)) == len(asked):
            present.answered(batches.Done(before, before, 0), output, as_json=as_json)
            return
    reached = served_release.reached(store, registry, at_hand(target), profile, options.tell, trusted=trust_release)
    with reached as server, open_console() as console:
        kind, requests = batches.read(
            prompts, model=server.model, chat=server.chat, max_tokens=max_tokens, temperature=temperature
        )
        console.stage(1, 1, "batch", f"{len(requests)} requests to {server.model}")
        done = batches.run(
            server.base_url,
            kind,
            requests,
            output,
            concurrency=concurrency,
            timeout=600.0,
            progress=console.progress,
        )
        console.end(f"{done.total - done.before} answers")
    present.answered(done, output, as_json=as_json)


def canary(
    target: Target, profile: Profile = None, trust_release: TrustRelease = False, as_json: AsJson = False
) -> None:
    """Prove a server: everything that its manifest promises, asked with the openai SDK."""
    from qpack.cli.render import serving as present
    from qpack.core.console import open_console
    from qpack.serve import live, served_release

    store, registry = options.store(), options.registry_folder()
    with served_release.reached(
        store, registry, at_hand(target), profile, options.tell, trusted=trust_release
    ) as server:
        with open_console() as console:
            console.stage(1, 1, "canary", f"{server.model} at {server.base_url}")
            proof = live.prove(store, server, console)
            console.end(f"{len(proof.checks)} checks")
    present.proved(server, proof, as_json=as_json)


def drift(
    url: Annotated[str, typer.Argument(metavar="URL", help="A running server.", show_default=False)],
    ref: AnyRef,
    profile: Profile = None,
    trust_release: TrustRelease = False,
    as_json: AsJson = False,
) -> None:
    """Compare a running server with the release that it should be."""
    from qpack.cli.render import serving as present
    from qpack.serve import live, served_release

    served = served_release.find(options.registry_folder(), at_hand(ref), profile)
    served_release.check_trust(served, trust_release)
    present.drifted(served, url, live.drift(url, served), as_json=as_json)


def manifest_lint(
    ref: AnyRef,
    profile: Profile = None,
    vllm: Annotated[
        str | None,
        typer.Option("--vllm", metavar="VERSION", help="Insist on this version of vLLM.", show_default=False),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory", metavar="GIB", help="Memory of one device, if it isn't this one's.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check how a release is served: against its checkpoint, this machine and a real vLLM's parser."""
    from qpack.cli.render import serving as present
    from qpack.serve import served_release as serve

    store, registry = options.store(), options.registry_folder()
    ref = at_hand(ref)
    served = serve.find(registry, ref, profile)
    names = [] if profile else list(served.whole.profiles)
    profiles = [served, *(serve.find(registry, served.resolved, name) for name in names)]
    environment = serve.environment(store, options.tell, wanted=vllm)
    size = int(memory * 2**30) if memory is not None else None
    checked = serve.lint(store, registry, profiles, environment, size)
    present.linted(checked, as_json=as_json)
    if any(each.problems for each in checked):
        raise typer.Exit(2)


def manifest_schema() -> None:
    """Print the JSON Schema of serving manifests (`serving.json`)."""
    import json

    from registry.serving.serving_manifest import schema

    print(json.dumps(schema(), indent=2))
