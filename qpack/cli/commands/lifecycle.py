"""Commands that say where an alias points, whether a release can be trusted, and what the registry may forget."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, Ref

if TYPE_CHECKING:
    from registry.lifecycle.promotion import Demands
    from registry.lifecycle.signing import Signatures
    from registry.local.registry import LocalRegistry

Alias = Annotated[str, typer.Argument(metavar="ALIAS", help="The alias, such as production.", show_default=False)]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A release without version.", show_default=False)]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="The reason, for the history.", show_default=False)]


def alias(
    ref: Ref,
    alias: Alias,
    expect: Annotated[
        str | None,
        typer.Option(
            "--expect",
            metavar="VERSION",
            help="Only if the alias points there now; 'none' if it must not exist yet.",
            show_default=False,
        ),
    ] = None,
    why: Why = "",
    as_json: AsJson = False,
) -> None:
    """Point ALIAS at a release, without asking anything of it. An alias that a policy guards needs `promote`."""
    from qpack.cli.render import lifecycle as present
    from registry.lifecycle import promotion
    from registry.local.changes import whoami

    expected = "" if expect == "none" else expect
    present.moved(promotion.move(_local(), ref, alias, expected, actor=whoami(), why=why), as_json=as_json)


def promote(
    ref: Ref,
    alias: Alias,
    policy: Annotated[
        list[Path] | None,
        typer.Option(
            "--policy", metavar="FILE", help="Another policy that has to agree; may be given again.", show_default=False
        ),
    ] = None,
    why: Why = "",
    as_json: AsJson = False,
) -> None:
    """Point ALIAS at a release that verifies, and that the promotion policy lets through."""
    from qpack.cli.render import lifecycle as present
    from registry.lifecycle import promotion
    from registry.local.changes import whoami

    local = _local()
    demands = _demands(local, *(policy or []))
    present.moved(promotion.promote(local, ref, alias, demands, actor=whoami(), why=why), as_json=as_json)


def rollback(name: Name, alias: Alias, why: Why = "", as_json: AsJson = False) -> None:
    """Point ALIAS at the version before, if its policy lets that through; again goes one further back."""
    from qpack.cli.render import lifecycle as present
    from registry.lifecycle import promotion
    from registry.local.changes import whoami

    local = _local()
    moved = promotion.rollback(local, name, alias, _demands(local), actor=whoami(), why=why)
    present.moved(moved, as_json=as_json)


def history(
    name: Annotated[str | None, typer.Argument(help="Only this release.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Show who published, signed, moved and removed what."""
    from qpack.cli.render import lifecycle as present

    local = _local()
    events = local.history(name)
    if name is not None and not events:
        local.list(name)
    present.told(events, as_json=as_json)


def verify(
    ref: Ref,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            "--key",
            metavar="PUB",
            help="A public key (PEM) that must have signed; may be given again.",
            show_default=False,
        ),
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option("--identity", help="A keyless signer that must have signed; with --issuer.", show_default=False),
    ] = None,
    issuer: Annotated[
        str | None, typer.Option("--issuer", metavar="URL", help="Who vouches for --identity.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a release: every digest and file, the links between its parts, figures and verdict, and its signature."""
    from qpack.cli.render import lifecycle as present
    from qpack.core.errors import RegistryError
    from qpack.pipeline.rejudge import rejudge
    from registry.lifecycle import verification
    from registry.local.alias_policy import Identity

    if (identity is None) != (issuer is None):
        raise typer.BadParameter("--identity and --issuer belong together")
    missing = [str(path) for path in key or [] if not path.is_file()]
    if missing:
        raise RegistryError(f"{missing[0]}: no such key", hint="Name the public key's PEM file.")
    local = _local()
    report = verification.verify(local, ref, rejudge)
    keyless = [Identity(identity=identity, issuer=issuer)] if identity and issuer else []
    signature = _signatures(local).finding(f"{report.reference}@{report.digest}", (*(key or []), *keyless))
    report = report.model_copy(update={"findings": (*report.findings, signature)})
    present.verified(report, as_json=as_json)
    verification.check(report)


def sign(
    ref: Ref,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key",
            metavar="FILE",
            help="A private key (PEM, P-256, P-384 or P-521). QPACK_KEY_PASSWORD opens an encrypted one.",
            show_default=False,
        ),
    ] = None,
    keyless: Annotated[
        bool, typer.Option("--keyless", help="Sign with this machine's CI identity, by sigstore. Needs the network.")
    ] = False,
    why: Why = "",
    as_json: AsJson = False,
) -> None:
    """Sign a release. The signature lies beside it in the registry and doesn't change its digest."""
    from qpack.cli.render import lifecycle as present
    from registry.local.changes import whoami

    if (key is None) != keyless:
        raise typer.BadParameter("name a private key with --key, or sign with --keyless")
    local = _local()
    resolved = local.resolve(ref)
    digest = _signatures(local).sign(
        f"{resolved.name}:{resolved.version}@{resolved.digest}", key, actor=whoami(), why=why
    )
    present.signed(resolved, digest, as_json=as_json)


def reproduce(
    ref: Ref,
    base: Annotated[
        Path,
        typer.Option(
            "--base",
            metavar="FOLDER",
            help="Where relative paths in its recipe start; else here.",
        ),
    ] = Path(),
    no_evaluate: Annotated[
        bool, typer.Option("--no-evaluate", help="Leave it at the tensors; else what differs is measured anew.")
    ] = False,
    accuracy_margin: Annotated[
        float, typer.Option("--accuracy-margin", min=0.0, help="How far apart two accuracies may be and count as one.")
    ] = 0.02,
    perplexity_margin: Annotated[
        float, typer.Option("--perplexity-margin", min=0.0, help="The same for perplexity, as a share of it.")
    ] = 0.02,
    trust_release: options.TrustRelease = False,
    as_json: AsJson = False,
    verbose: options.Verbose = False,
) -> None:
    """Rebuild a release's artifact from the release alone, and say how the two compare."""
    from evals.comparison.equivalence import Margins
    from qpack.cli.render import lifecycle as present
    from qpack.core.console import open_console
    from qpack.core.errors import GateUndecided, RegistryError
    from qpack.pipeline import reproduce as rebuild

    margins = Margins(accuracy=accuracy_margin, perplexity=perplexity_margin) if not no_evaluate else None
    with open_console(verbose=verbose) as console:
        found = rebuild.reproduce(_local(), ref, base, options.home(), console, margins, trusted=trust_release)
    present.reproduced(found, as_json=as_json)
    if found.outcome == "different":
        raise RegistryError(
            f"{found.reference} was not reproduced: its weights came out differently",
            hint="Other hardware or another number of cores can do that; the inputs that differ are named.",
        )
    if found.outcome == "undecided":
        raise GateUndecided(
            f"{found.reference}: its weights came out differently, and the samples don't decide whether that matters",
            hint="A recipe with more samples and windows decides more; --accuracy-margin and --perplexity-margin say"
            " how far apart counts as the same.",
        )


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what no release needs from the local registry. Safe beside running publications."""
    from qpack.cli.render import lifecycle as present
    from registry.core.transfers import left_behind

    local = _local()
    found = local.collect(dry_run=dry_run)
    # Pulls that broke off, and that nobody has taken up again.
    pulls, size = left_behind(options.home() / "pulls", dry_run=dry_run)
    temporary = (*found.temporary, *map(str, pulls))
    found = found.model_copy(update={"temporary": temporary, "bytes_freed": found.bytes_freed + size})
    present.collected(found, local.root, as_json=as_json)


def _local() -> LocalRegistry:
    from registry.local.registry import LocalRegistry

    return LocalRegistry(options.registry_folder())


def _demands(local: LocalRegistry, *named: Path) -> Demands:
    """The registry's own policy and those that are named, with what answers for signatures and figures."""
    from qpack.pipeline.rejudge import rejudge
    from registry.lifecycle import promotion
    from registry.local import alias_policy as policy

    own = policy.of_registry(local.root)
    policies = (*([own] if own else []), *map(policy.load, named))
    return promotion.Demands(policies, _signatures(local).by_rule, rejudge)


def _signatures(local: LocalRegistry) -> Signatures:
    from registry.lifecycle.signing import Signatures

    return Signatures(local, options.home(), lambda text: print(text, file=sys.stderr, flush=True))
