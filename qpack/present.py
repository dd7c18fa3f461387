"""What commands print: tables for people, JSON for programs. No decisions."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from qpack.console import seconds
from qpack.envs import Environment
from qpack.errors import RegistryError
from qpack.estimate import Step, artifact_bytes
from qpack.machine import Finding
from qpack.plan import Plan
from qpack.results import Estimate, Release
from qpack.store import Store
from qpack.work import Build
from registry.registries import open_registry
from registry.registry import Resolved

_MIB = 2**20


def emit(value: Any) -> None:
    """JSON on stdout."""
    print(json.dumps(value, indent=2, default=str))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Left-aligned columns without lines: readable, and easy to cut."""
    lines = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def read_release(registry: Path, ref: str) -> tuple[Resolved, Release, dict[str, Any]]:
    """A published release and its manifests, verified."""
    opened = open_registry("local", str(registry))
    resolved = opened.resolve(ref)
    release = Release.model_validate_json(opened.read(ref, "release.json"))
    return resolved, release, json.loads(opened.read(ref, "serving.json"))


def find_release(ref: str, settings: list[str] | None, store: Store, registry: Path) -> Release:
    """A release in the registry, or the record of a recipe's build whether it was published or not."""
    path = Path(ref)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        return read_release(registry, ref)[1]
    from qpack import describe, plan, recipe
    from qpack.console import open_console
    from qpack.work import from_store

    planned = plan.make(recipe.load(path, settings), store, thorough=False)
    with open_console() as console:
        built = from_store(Build(planned, store, console, registry))
    if built.judged is None:
        raise RegistryError(f"{ref}: its build hasn't been judged yet", hint=f"Run `qpack build {ref}` first.")
    return describe.release(built)


def built(build: Build, *, as_json: bool) -> None:
    """The end of a build: what was published, and its headline figures."""
    published, release = build.published, build.release
    if published is None or release is None:
        raise AssertionError("a build that ended has a release")
    entries = [
        entry
        for stage in ("fetch", "hold_out", "calibrate", "quantize", "baseline", "artifact", "judge")
        for entry in build.entries(stage)
    ]
    nothing = published.already_there and all(entry.reused for entry in entries)
    if as_json:
        emit(
            {
                "published": published.model_dump(),
                "nothing_to_do": nothing,
                "verdict": release.result.verdict.model_dump(),
            }
        )
        return
    if nothing:
        print(f"Nothing to do: {published.reference} is published with these inputs.")
    else:
        print(f"Published {published.reference} ({published.digest[:19]}) in {published.location}")
        if release.result.forced:
            print("It did not pass its gates, and is marked so.")
    figures(release.result)
    print(f"\nSee `qpack show {published.reference}` and `qpack report {published.reference}`.")


def figures(release: Release) -> None:
    """Baseline and artifact side by side, and the gates."""
    c, before, after = release.comparison, release.baseline, release.artifact
    rows = [
        *((f"{t.task} ({t.metric})", f"{t.baseline:.4f}", f"{t.artifact:.4f}", _signed(t.drop, -1)) for t in c.tasks),
        (
            "perplexity, held-out",
            f"{c.perplexity_baseline:.3f}",
            f"{c.perplexity_artifact:.3f}",
            _times(c.perplexity_ratio),
        ),
        ("KL divergence, nats", "", f"{c.kl_divergence.value:.4f}", _range(c.kl_divergence)),
        ("top-1 flips", "", f"{c.flip_rate.value:.1%}", _range(c.flip_rate, percent=True)),
        ("weights, MiB", _mib(before.memory.weights_bytes), _mib(after.memory.weights_bytes), _times(c.size_ratio)),
        (
            "resident peak, MiB",
            _mib(before.memory.peak_resident_bytes),
            _mib(after.memory.peak_resident_bytes),
            _times(c.memory_ratio),
        ),
        *(
            (f"output tok/s, {s.concurrency} at once", _rate(before, i), _rate(after, i), _times(s.throughput))
            for i, s in enumerate(c.speed)
        ),
    ]
    print()
    table(("", "baseline", "artifact", "change (90 % interval)"), rows)
    print()
    table(
        ("gate", "bound", "figure", "verdict"),
        (
            (g.gate, f"{'<=' if g.kind == 'max' else '>='} {g.bound:g}", f"{g.estimate.value:.4g}", g.outcome)
            for g in release.verdict.gates
        ),
    )


def _rate(evidence: Any, level: int) -> str:
    runs = evidence.latency.levels[level].runs
    return f"{statistics.median(run.output_tokens_per_second for run in runs):.1f}"


def _mib(count: int) -> str:
    return f"{count / _MIB:,.1f}"


def _range(estimate: Estimate, *, percent: bool = False) -> str:
    if estimate.interval is None:
        return ""
    low, high = estimate.interval.low, estimate.interval.high
    return f"[{low:.1%}, {high:.1%}]" if percent else f"[{low:.4f}, {high:.4f}]"


def _signed(estimate: Estimate, sign: int) -> str:
    text = f"{sign * estimate.value:+.4f}"
    if estimate.interval is None:
        return text
    low, high = sorted((sign * estimate.interval.low, sign * estimate.interval.high))
    return f"{text} [{low:+.4f}, {high:+.4f}]"


def _times(estimate: Estimate) -> str:
    text = f"x{estimate.value:.3f}"
    return text if estimate.interval is None else f"{text} [{estimate.interval.low:.3f}, {estimate.interval.high:.3f}]"


def checked(plan: Plan, *, as_json: bool) -> None:
    """A recipe that can be built, and what could not be looked at."""
    if as_json:
        emit(
            {
                "recipe": str(plan.loaded.file.path),
                "ok": True,
                "engine": plan.engine.NAME,
                "target": plan.target,
                "unchecked": plan.unchecked,
            }
        )
        return
    print(f"{plan.loaded.file.path}: ok")
    for left in plan.unchecked:
        print(f"  not checked: {left}")


def planned(plan: Plan, steps: list[Step], *, as_json: bool) -> None:
    """What would run."""
    size = artifact_bytes(plan)
    if as_json:
        emit(
            {
                "recipe": plan.recipe.model_dump(mode="json"),
                "source": plan.source.resolved,
                "engine": plan.engine.NAME,
                "why_engine": plan.why_engine,
                "hardware": plan.hardware.model_dump(),
                "target": plan.target,
                "environments": {
                    e.name: {"variant": e.variant, "lock": e.digest, "made": e.ready}
                    for e in plan.environments.values()
                },
                "steps": [dataclasses.asdict(step) for step in steps],
                "artifact_bytes": size,
                "unchecked": plan.unchecked,
            }
        )
        return
    r = plan.recipe
    parameters = f", {plan.source.parameters / 1e6:,.0f} million parameters" if plan.source.tensors else ""
    print(
        f"{r.name}: {r.quantize.method} {r.quantize.scheme}"
        + (f" in groups of {r.quantize.group_size}" if r.quantize.group_size else "")
    )
    print(f"  model     {plan.source.resolved}{parameters}")
    print(f"  engine    {plan.engine.NAME}: {plan.why_engine}")
    print(f"  serves on {plan.target} ({plan.hardware.name})")
    if size is not None:
        print(f"  weights   {size / _MIB:,.0f} MiB expected, from shapes and bits")
    for environment in plan.environments.values():
        if not environment.ready:
            print(f"  environment {environment.name} ({environment.variant}) has to be made first")
    print()
    table(
        ("step", "state", "time", "basis"),
        (
            (
                s.stage,
                "done" if s.done else "to do",
                "" if s.done or s.seconds is None else seconds(s.seconds),
                "" if s.done else s.basis,
            )
            for s in steps
        ),
    )
    for left in plan.unchecked:
        print(f"\nnot checked: {left}")


def shown(resolved: Resolved, release: Release, serving: dict[str, Any], *, as_json: bool) -> None:
    """A release."""
    if as_json:
        emit({**resolved.model_dump(), "release": release.model_dump(mode="json"), "serving": serving})
        return
    q, source = release.quantized, release.source
    print(f"{resolved.name}:{resolved.version}  {resolved.digest}")
    print(f"  made      {release.created} by qpack {release.qpack_version}")
    print(f"  from      {source.resolved} ({source.architecture}, {source.parameters / 1e6:,.0f} million parameters)")
    groups = f" in groups of {q.group_size}" if q.group_size else ""
    layers = f"{q.quantized_layers} of {q.linear_layers} linear layers"
    print(f"  with      {q.engine} {q.engine_version}: {q.method} {q.scheme}{groups}, {layers}")
    hardware = release.artifact.hardware
    print(f"  served by {release.artifact.server} on {hardware.name}, {hardware.cores} cores")
    if resolved.aliases:
        print(f"  aliases   {', '.join(resolved.aliases)}")
    if release.forced:
        print("  PUBLISHED ALTHOUGH ITS GATES DID NOT PASS")
    figures(release)


def pulled(resolved: Resolved, folder: Path, *, as_json: bool) -> None:
    """A release that was pulled, and how to serve it."""
    if as_json:
        emit({**resolved.model_dump(), "folder": str(folder.absolute())})
        return
    print(f"Pulled {resolved.name}:{resolved.version} ({resolved.digest[:19]}) to {folder}")
    print(f"{folder}/README.md has the command that serves it.")


def listed(releases: Sequence[Resolved], *, as_json: bool) -> None:
    """The registry's releases."""
    if as_json:
        emit([release.model_dump() for release in releases])
        return
    if not releases:
        print("No release yet. `qpack build RECIPE` makes one.")
        return
    table(
        ("release", "aliases", "created", "digest"),
        ((f"{r.name}:{r.version}", ", ".join(r.aliases), r.created, r.digest[:19]) for r in releases),
    )


def reported(release: Release, output: Path | None, *, as_json: bool) -> None:
    """Write the HTML report."""
    from evals import report

    target = output or Path(f"{release.name}-report.html")
    try:
        target.write_text(report.render(release), encoding="utf-8")
    except OSError as error:
        raise RegistryError(f"{target}: {error.strerror}", hint="Name another file with --output.") from error
    missed = [gate for gate in release.verdict.gates if gate.outcome != "pass"]
    if as_json:
        emit({"report": str(target.absolute()), "verdict": release.verdict.model_dump()})
        return
    print(f"Wrote {target}: {release.verdict.outcome}")
    for gate in missed:
        print(f"  {gate.gate}: {gate.why}")


def examined(findings: list[Finding], *, as_json: bool) -> None:
    """What the doctor found."""
    if as_json:
        emit([dataclasses.asdict(finding) for finding in findings])
        return
    table(("", "", ""), [(f.severity, f.what, f.value) for f in findings])
    for finding in findings:
        if finding.hint:
            print(f"\n{finding.what}: {finding.hint}")


def environments(found: list[Environment], *, as_json: bool) -> None:
    """The engine environments."""
    if as_json:
        emit(
            [
                {"name": e.name, "variant": e.variant, "lock": e.digest, "made": e.ready, "folder": str(e.folder)}
                for e in found
            ]
        )
        return
    table(
        ("environment", "variant", "state", "lock", "folder"),
        ((e.name, e.variant, "made" if e.ready else "not made", e.digest[:12], str(e.folder)) for e in found),
    )
