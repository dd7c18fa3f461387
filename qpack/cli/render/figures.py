"""A release's figures: for `qpack show` and `qpack build`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qpack.cli.render.text import number, plain, table
from qpack.core import side_by_side
from qpack.core.figures import DomainDifference
from qpack.core.records import Estimate, GenerationDifference, Release
from qpack.core.side_by_side import SideBySide

_MIB = 2**20
_WORST = 2


def _rows(release: Release) -> list[tuple[str, ...]]:
    c, after = release.comparison, release.artifact
    return [
        *(
            (("recovery, mean score over tasks", "", f"{c.recovery.value:.1%}", _range(c.recovery, percent=True)),)
            if c.recovery
            else ()
        ),
        *((f"{t.task} ({t.metric})", f"{t.baseline:.4f}", f"{t.artifact:.4f}", _signed(t.drop, -1)) for t in c.tasks),
        *(row for task in c.generated for row in _answers(task)),
        _pair("perplexity, held-out", side_by_side.perplexity(release), _perplexity),
        *(
            (("  vLLM over plain transformers, artifact", "", "", _times(c.cross_check)),)
            if c.cross_check is not None
            else ()
        ),
        (c.kl_label, "", f"{c.kl_divergence.value:.4f}", _range(c.kl_divergence)),
        *((("  upper bound, top-k lists only", "", f"{c.tail.kl_at_most:.4f}", ""),) if c.tail else ()),
        ("top-1 flips", "", f"{c.flip_rate.value:.1%}", _range(c.flip_rate, percent=True)),
        *(row for domain in c.domains for row in _domain(domain)),
        *(
            (
                (
                    f"facts found in {after.needle.prompt_tokens:,} tokens",
                    f"{c.needle.baseline:.0%}",
                    f"{c.needle.artifact:.0%}",
                    _signed(c.needle.drop, -1),
                ),
            )
            if c.needle and after.needle
            else ()
        ),
        _pair("weights, MiB", side_by_side.weights_bytes(release), _mib),
        *((_pair("server memory, MiB", held, _mib),) if (held := side_by_side.memory_bytes(release)) else ()),
        *(_pair(f"output tok/s, {s.concurrency} at once", s, _rate) for s in side_by_side.throughput(release)),
    ]


def figures(release: Release) -> None:
    """Baseline and artifact side by side, and the gates."""
    c, after = release.comparison, release.artifact
    print()
    table(("", "baseline", "artifact", "change (90 % interval)"), _rows(release))
    if release.native is not None and (beside := side_by_side.beside_native(release)):
        print(f"\nThe artifact beside the source as it is stored ({release.native.form}); no gate judges by it:")
        table(("", "as stored", "artifact", "change (90 % interval)"), _rows(beside))
    if after.emulated is not None:
        print(f"\n{after.emulated}")
    if c.apart and c.speed:
        print(
            f"\nBaseline and artifact were measured one after the other ({c.apart}); changes of the machine in between"
            " affect the ratios of tok/s but not their intervals."
        )
    if c.speed and (shared := side_by_side.shared_machine(release)):
        print(f"\n{shared}")
    print()
    table(
        ("gate", "bound", "figure", "verdict"),
        (
            (g.gate, f"{'<=' if g.kind == 'max' else '>='} {g.bound:g}", number(g.estimate.value), g.outcome)
            for g in release.verdict.gates
        ),
    )
    if c.needle and c.needle.no_verdict:
        print(f"\nlong context: {c.needle.no_verdict}")
    for window in c.continued.worst[:_WORST] if c.continued else ():
        print(f"\nlargest difference, window {window.window + 1}{f' ({window.domain})' if window.domain else ''}:")
        for name, text in (
            ("after", f"…{window.before}"),
            ("baseline", window.baseline),
            ("artifact", window.artifact),
        ):
            print(f"  {name:<9} {plain(text, last=name == 'after')}")
    missed = [check for check in (after.proof.checks if after.proof else ()) if check.outcome != "pass"]
    if missed:
        print()
    for check in missed:
        print(f"canary: {check.name} {'failed' if check.outcome == 'fail' else 'skipped'}: {check.why}")
    for anomaly in release.verdict.anomalies:
        print(f"\nanomaly: {anomaly}")
    for one in release.contamination.sets if release.contamination else ():
        if one.overlaps:
            count = f"{len(one.overlaps)} of {one.items} items of {one.name}"
            print(f"\n{count} are also in calibration rows; see the report.")


def _answers(task: GenerationDifference) -> Sequence[tuple[str, ...]]:
    cut, loops = task.truncated, task.loops_baseline
    return (
        (
            f"  {task.task}: answers cut",
            f"{task.truncated_baseline:.1%}",
            f"{cut.value:.1%}",
            _range(cut, percent=True),
        ),
        (
            f"  {task.task}: endless loops",
            f"{loops:.1%}",
            f"{loops + task.loop_rate.value:.1%}",
            _signed(task.loop_rate, 1),
        ),
        (
            f"  {task.task}: tokens per answer",
            f"{task.tokens_baseline:.1f}",
            f"{task.tokens_baseline * task.length_ratio.value:.1f}",
            _times(task.length_ratio),
        ),
    )


def _domain(domain: DomainDifference) -> Sequence[tuple[str, ...]]:
    name, perplexities = domain.domain, (f"{domain.perplexity_baseline:.3f}", f"{domain.perplexity_artifact:.3f}")
    kl, flips = domain.kl_divergence, domain.flip_rate
    return (
        (f"perplexity, {name}", *perplexities, _times(domain.perplexity_ratio)),
        (f"KL divergence, {name}", "", f"{kl.value:.4f}", _range(kl)),
        (f"top-1 flips, {name}", "", f"{flips.value:.1%}", _range(flips, percent=True)),
    )


def _pair(name: str, pair: SideBySide, form: Callable[[float], str]) -> tuple[str, ...]:
    return name, form(pair.baseline), form(pair.artifact), _times(pair.ratio)


def _perplexity(value: float) -> str:
    return f"{value:.3f}"


def _rate(rate: float) -> str:
    return f"{rate:.1f}"


def _mib(count: float) -> str:
    return f"{count / _MIB:,.1f}"


def _range(estimate: Estimate, *, percent: bool = False) -> str:
    if estimate.interval is None:
        return ""
    low, high = estimate.interval.low, estimate.interval.high
    return f"[{low:.1%}, {high:.1%}]" if percent else f"[{low:.4f}, {high:.4f}]"


def _signed(estimate: Estimate, sign: int) -> str:
    text = f"{sign * estimate.value:+z.4f}"
    if estimate.interval is None:
        return text
    low, high = sorted((sign * estimate.interval.low, sign * estimate.interval.high))
    return f"{text} [{low:+z.4f}, {high:+z.4f}]"


def _times(estimate: Estimate) -> str:
    text = f"x{estimate.value:.3f}"
    return text if estimate.interval is None else f"{text} [{estimate.interval.low:.3f}, {estimate.interval.high:.3f}]"
