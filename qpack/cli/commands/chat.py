"""`qpack chat`."""

from __future__ import annotations

from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.options import MaxTokens, Profile, Target, Temperature, TrustRelease
from qpack.cli.places import at_hand


def chat(
    target: Target,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="One prompt (default: a conversation).", show_default=False),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="A system message.", show_default=False)] = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.0,
    profile: Profile = None,
    trust_release: TrustRelease = False,
) -> None:
    """Chat with a release or a running server."""
    from qpack.cli.render import chat as present
    from qpack.serve import served_release

    store, registry, trusted = options.store(), options.registry_folder(), trust_release
    with served_release.reached(store, registry, at_hand(target), profile, options.report, trusted=trusted) as server:
        present.conversation(server, prompt, system, max_tokens=max_tokens, temperature=temperature)
