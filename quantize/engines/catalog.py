"""The engines, and the choice of `engine: auto`."""

from __future__ import annotations

from quantize.engines import autoawq, autogptq, autoround, gptqmodel, gram, llmcompressor, modelopt, source_copy
from quantize.engines.protocol import Engine

ENGINES: dict[str, Engine] = {
    "llmcompressor": llmcompressor,
    "gram": gram,
    "gptqmodel": gptqmodel,
    "autoround": autoround,
    "modelopt": modelopt,
    "autoawq": autoawq,
    "autogptq": autogptq,
    "copy": source_copy,
}
"""In the order of preference of `auto`."""


def choose(
    wanted: str,
    method: str,
    scheme: str,
    target: str = "cpu",
    form: str | None = None,
    *,
    mixed: bool = False,
    tuned: bool = False,
) -> tuple[Engine | None, str]:
    """The engine, and why; None if no engine supports the request. `target` is the hardware it runs on: an engine
    without a lock for GPUs runs on the CPU there. `form` is the format to save; `mixed`: bits are chosen per layer;
    `tuned`: layers are tuned after rounding.
    """
    able = [
        engine
        for engine in ENGINES.values()
        if (method, scheme) in engine.SUPPORTED
        and (form is None or form in engine.FORMATS)
        and (engine.MIXED_PRECISION or not mixed)
        and (engine.TUNES or not tuned)
    ]
    how = (" within a budget" if mixed else "") + (" with iterations of tuning" if tuned else "")
    what = f"{method} {scheme}" + (f" in the format {form}" if form else "") + how
    if wanted != "auto":
        engine = ENGINES[wanted]
        if engine not in able:
            others = f"; it is made by {', '.join(other.NAME for other in able)}" if able else ""
            return None, f"{wanted} doesn't make {what}{others}"
        on_cpu = target != "cpu" and not _uses_gpus(engine)
        return engine, "the recipe names it" + (
            "; it has no environment for GPUs, and works on the CPU" if on_cpu else ""
        )
    able.sort(key=lambda engine: target != "cpu" and not _uses_gpus(engine))
    if not able:
        return None, f"no engine makes {what}"
    engine, *rest = able
    if method == "none":
        return engine, "it copies the source, and quantizes nothing"
    if method == "online":
        return engine, "it copies the source, and vLLM quantizes it as it loads"
    why = f"it makes {method} {scheme} on {'GPUs' if target != 'cpu' and _uses_gpus(engine) else 'a CPU'}"
    why += f" in the format {form or engine.FORMATS[0]}{how}"
    if rest:
        why += "; " + ", ".join(f"{other.NAME} makes it too (format {form or other.FORMATS[0]})" for other in rest)
    return engine, why


def _uses_gpus(engine: Engine) -> bool:
    return engine.ENVIRONMENT.lock("cuda").name == "cuda.txt"
