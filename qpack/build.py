"""The stages of a build, in order. Each takes the build so far and adds one finished result to it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evals import sites, suite
from evals.needle import Hidden
from evals.observe import PARTS, Observed, Questions, Rival, Subject, observe
from evals.serving import Command
from qpack import baselines, describe, files, hardware, held_out, narrate, needs
from qpack.console import seconds
from qpack.errors import QuantizeError, RegistryError
from qpack.manifest import promise
from qpack.questions import stop_of, tasks
from qpack.results import Accuracy, Calibrated, Fetched, HeldOut, Judged, Published, Quantized, Release
from qpack.store import key_of
from qpack.work import Build, need
from quantize import hub, sources
from registry import mending, serving_manifest
from registry import release as releases
from registry.changes import whoami
from registry.local import LocalRegistry
from registry.registries import open_registry
from registry.registry import Registry

_ROOT = Path(__file__).parent.parent
_TOKENS = _ROOT / "quantize" / "workers" / "tokens_worker.py"
_GGUF = _ROOT / "quantize" / "workers" / "gguf_worker.py"


def fetch(build: Build) -> Build:
    """The source model as a transformers checkpoint: converted from GGUF, or linked from where it lies."""
    source = build.plan.source

    def make(out: Path) -> Fetched:
        checkpoint, notes = out / "checkpoint", ()
        if source.kind == "gguf":
            job = {"gguf": str(source.path), "licence_file": str(source.licence_file) if source.licence_file else None}
            notes = tuple(build.work("fetch", "transformers", _GGUF, job, out)["notes"])
        else:
            folder = source.path or hub.download(source.resolved)
            checkpoint.mkdir()
            for file in sources.served_files(folder):
                # Links: a 140 GB model isn't copied, and the key holds the digest of what is linked.
                (checkpoint / file.name).symlink_to(file.resolve())
        records, digest = files.digest_tree(checkpoint)
        looked, problems = sources.find(str(checkpoint), out, None)
        if looked is None:
            raise QuantizeError("the fetched model can't be used", problems=tuple(problems))
        architectures = looked.config.get("architectures") or [looked.config.get("model_type", "unknown")]
        return Fetched(
            source=source.uri,
            resolved=source.resolved,
            digest=digest,
            files=records,
            architecture=architectures[0],
            parameters=looked.parameters,
            weights_bytes=sources.weights_bytes(looked.tensors),
            license=build.plan.recipe.model.license or source.license,
            notes=notes,
        )

    return replace(build, fetched=build.once("fetch", Fetched, make))


def hold_out(build: Build) -> Build:
    """Held-out text as windows of tokens, set aside before the calibration chooses its rows."""
    plan = build.plan

    def windows(job: Mapping[str, Any], out: Path) -> list[str]:
        read = {**_reading(build), **job, "kind": "windows"}
        return list(build.work("hold_out", "transformers", _TOKENS, read, out)["row_digests"])

    def make(out: Path) -> HeldOut:
        return held_out.make(plan.recipe.evaluate.perplexity, plan.held_out, windows, out)

    return replace(build, held_out=build.once("hold_out", HeldOut, make))


def calibrate(build: Build) -> Build:
    """Calibration texts as rows of tokens, with a record of every text that was used, cut or left out."""
    ask = build.plan.recipe.calibration
    if ask is None:
        return build

    def make(out: Path) -> Calibrated:
        job = {
            **_reading(build),
            **ask.model_dump(exclude={"source"}),
            "kind": "rows",
            "texts": str(build.plan.calibration),
            "held_out": list(need(build.held_out).result.row_digests),
        }
        answer = build.work("calibrate", "transformers", _TOKENS, job, out)
        return Calibrated(
            digest=files.sha256(out / "tokens.jsonl"),
            rows=len(answer["lengths"]),
            max_length=ask.max_length,
            seed=ask.seed,
            chat_template=ask.chat_template,
            padded_tokens=0,
            **answer,
        )

    return replace(build, calibrated=build.once("calibrate", Calibrated, make))


def quantize(build: Build) -> Build:
    """The artifact, made by the engine in its own environment."""
    engine, request = build.plan.engine, build.plan.request

    def make(out: Path) -> Quantized:
        tokens = build.calibrated.folder / "tokens.jsonl" if build.calibrated else None
        scratch = build.store.scratch("quantize", build.plan.key("quantize"))
        job = engine.job(request, need(build.fetched).folder / "checkpoint", tokens) | {"scratch": str(scratch)}
        answer = build.work("quantize", engine.ENVIRONMENT.name, engine.WORKER, job, out)
        shutil.rmtree(scratch, ignore_errors=True)
        return engine.read(request, out, answer).model_copy(update=needs.expected(build.plan))

    made = build.once("quantize", Quantized, make)
    if (told := sites.warning(made.result.sites)) is not None:
        build.console.tell(f"warning: {told}")
    return replace(build, quantized=made)


def baseline(build: Build) -> Build:
    """The source model's evidence, from one server; from the store when any recipe asked the same before."""
    source = need(build.fetched)
    for why in baselines.refused(build.plan, build.store):
        build.console.tell(why)
    return replace(
        build, baseline=_observe(build, "baseline", "baseline", source.result.digest, source.folder / "checkpoint")
    )


def artifact(build: Build) -> Build:
    """The artifact's evidence, from one server started the same way."""
    made = need(build.quantized)
    name = build.plan.recipe.name
    source, known = need(build.fetched), build.baseline
    stop, rivals, folder = None, {}, made.folder / "checkpoint"
    rounds, free = build.plan.recipe.measure.rounds, hardware.free_accelerator_bytes
    # Without a baseline the artifact alone is asked about, and everything (`qpack reproduce`).
    if known is not None:
        stop = stop_of(build.plan.recipe, known.accuracy.result)
        if "artifact.interleaved" in build.plan.stages:
            reference = _subject(
                build, "baseline", "baseline", source.result.digest, source.folder / "checkpoint", without=()
            )
            rivals["interleaved"] = Rival(reference, known.performance.result.memory, rounds, free)
        if "artifact.drafting" in build.plan.stages:
            plain = _subject(build, "artifact", name, made.result.digest, folder, without=(serving_manifest.DRAFT,))
            rivals["drafting"] = Rival(plain, None, rounds, free, texts=True)
    return replace(build, artifact=_observe(build, "artifact", name, made.result.digest, folder, rivals, stop))


def judge(build: Build) -> Build:
    """Artifact against baseline, held against the recipe's gates."""

    def make(_: Path) -> Judged:
        # scipy: not loaded unless there is something to judge.
        from evals.compare import compare
        from evals.verdicts import verdict

        before, after = describe.baseline_evidence(build), describe.artifact_evidence(build)
        logprobs = [need(observed).language.folder / "logprobs.npz" for observed in (build.baseline, build.artifact)]
        seed = build.plan.recipe.evaluate.seed
        turns, going_on = describe.in_turn(build), describe.continued(build)
        comparison = compare(before, after, *logprobs, interleaved=turns, continued=going_on, seed=seed)
        bounds = build.plan.recipe.gates.bounds()
        found = verdict(comparison, before, after, bounds)
        return Judged(comparison=comparison, verdict=found, contamination=describe.overlaps(build))

    build = replace(build, judged=build.once("judge", Judged, make))
    found = need(build.judged).result.verdict
    if found.outcome != "pass" and not build.allow_failed_gates:
        raise narrate.refusal(build, found)
    return build


def package(build: Build) -> Build:
    """The release folder: artifact, manifests, card and licence."""
    verdict = need(build.judged).result.verdict
    inputs = {
        "judge": need(build.judged).key,
        "recipe": build.plan.loaded.file.text,
        "resolved": build.plan.recipe.model_dump(mode="json"),
        "forced": verdict.outcome != "pass",
        "layout": releases.LAYOUT,
        "manifest": serving_manifest.API_VERSION,
    }
    source, quantized = need(build.fetched), need(build.quantized)

    def make(out: Path) -> Release:
        made = describe.release(build)
        licence = build.plan.source.licence_file
        folder = out / "release"
        folder.mkdir()
        releases.lay_out(
            folder,
            checkpoint=quantized.folder / "checkpoint",
            source=source.folder / "checkpoint",
            release=made,
            serving=describe.published_serving(build),
            license_text=licence.read_text(errors="replace") if licence else None,
        )
        return made

    return replace(build, release=build.store.once("package", key_of(inputs), Release, make, inputs=inputs))


def publish(build: Build) -> Build:
    """The release in the registry, under an immutable version, and the alias moved to it."""
    ask, packaged = build.plan.recipe.publish, need(build.release)
    registry = open_registry(ask.registry, str(build.registry))
    # A release that is there already isn't hashed again.
    note = f"published-{key_of({'release': packaged.key, 'registry': str(build.registry), 'ask': ask.model_dump()})}"
    if known := build.store.recall(note):
        _mend(build, known)
        if found := _still_there(registry, known):
            return replace(build, published=found)
    published = registry.push(
        packaged.folder / "release",
        build.plan.recipe.name,
        ask.version,
        ask.alias,
        annotations=releases.oci_annotations(packaged.result),
        actor=whoami(),
        note="qpack build",
        # Nothing writes to a finished result, so the registry may have its files by link, and no second copy.
        consume=True,
    )
    build.store.remember(note, published.model_dump())
    return replace(build, published=published)


STAGES: tuple[Callable[[Build], Build], ...] = (
    fetch,
    hold_out,
    calibrate,
    quantize,
    baseline,
    artifact,
    judge,
    package,
    publish,
)


def run(build: Build, stages: tuple[Callable[[Build], Build], ...] = STAGES) -> Build:
    """Run every one of `stages` that isn't finished: all of them, or the first few. Raises what the stage raises; what
    was finished stays in the store.
    """
    for number, stage in enumerate(stages, 1):
        name = stage.__name__
        build.console.stage(number, len(stages), name, narrate.about(build.plan, name))
        started = time.monotonic()
        build = stage(build)
        entries = build.entries(name)
        reused = bool(entries) and all(entry.reused for entry in entries.values())
        build.console.end(
            f"{'from the store' if reused else seconds(time.monotonic() - started)}{narrate.summary(build, name)}"
        )
    return build


def _mend(build: Build, known: dict[str, Any]) -> None:
    """Replace what was found damaged of a published release by the store's copy.

    Raises RegistryError when that is damaged too. Then it is taken out of the store, with all that came of it, so that
    the next build makes it anew.
    """
    local, packaged, quantized = LocalRegistry(build.registry), need(build.release), need(build.quantized)
    reference = str(known.get("reference"))
    try:
        if not mending.in_doubt(local, reference):
            return
    except RegistryError:
        return  # Its manifest is gone or damaged: it is published again.
    try:
        for path in mending.mend(local, reference, packaged.folder / "release"):
            build.console.tell(f"{reference}: {path} was damaged in the registry, and is replaced from the store")
    except mending.Lost as error:
        gone = [("package", packaged.key)]
        if mending.differing(quantized.folder / "checkpoint", quantized.result.files):
            parts = ("performance", "language", "continuations", "needle", "accuracy")
            steps = ("quantize", *(f"artifact.{part}" for part in parts), "judge")
            gone += [(s.rpartition(".")[2], build.plan.key(s)) for s in steps if s in build.plan.stages]
        for stage, key in gone:
            build.store.forget(stage, key)
        raise RegistryError(
            error.what,
            hint="The damaged results were taken out of the store: run the same command again to make them anew, or"
            " pull the release from another copy. Check the disk.",
        ) from error


def _still_there(registry: Registry, known: dict[str, Any]) -> Published | None:
    published = Published.model_validate(known).model_copy(update={"already_there": True})
    try:
        if mending.in_doubt(LocalRegistry(Path(published.location)), published.reference):
            return None
        there = registry.resolve(published.reference)
        aliased = (
            published.alias is None or registry.resolve(f"{there.name}:{published.alias}").digest == published.digest
        )
    except RegistryError:
        return None
    return published if there.digest == published.digest and aliased else None


def _reading(build: Build) -> dict[str, Any]:
    checkpoint = need(build.fetched).folder / "checkpoint"
    return {"checkpoint": str(checkpoint), "trust_remote_code": build.plan.recipe.model.trust_remote_code}


def _subject(
    build: Build,
    who: str,
    name: str,
    digest: str,
    checkpoint: Path,
    *,
    without: tuple[str, ...] | None = None,
    proved: bool = False,
) -> Subject:
    """A model and how its server is started: as it is published. A server beside another one (`without` isn't None)
    has what lets it start there, and leaves those flags out. `proved`: the canary holds it to its manifest.
    """
    r, vllm = build.plan.recipe, build.plan.environments["vllm"]
    manifest = describe.serving(build, name, digest, who)
    if without is not None:
        kept = {flag: value for flag, value in manifest.arguments.items() if flag not in without}
        # vLLM asks for this share to be free when it starts, and takes no more than its weights and the KV cache's
        # budget when it has one.
        share = {} if manifest.hardware == "cpu" else {"gpu-memory-utilization": 0.05}
        manifest = manifest.model_copy(update={"arguments": kept | share})

    def arguments(host: str, port: int) -> list[str]:
        return serving_manifest.vllm_arguments(manifest, checkpoint, host=host, port=port)

    command = Command(vllm.python, arguments, {**vllm.variables, **manifest.environment})
    port = r.serve.port if without is None else None
    return Subject(name, checkpoint, command, port, r.serve.max_model_len, promise(manifest) if proved else None)


def _observe(
    build: Build,
    who: str,
    name: str,
    digest: str,
    checkpoint: Path,
    rivals: Mapping[str, Rival] | None = None,
    stop: Callable[[Accuracy], bool] | None = None,
) -> Observed:
    r, plan = build.plan.recipe, build.plan
    parts = {part: stage for part in PARTS if (stage := plan.stages.get(f"{who}.{part}")) is not None}
    # The environments are made before the server is up: making one takes the disk and the cores that are measured.
    missing = build.missing(who)
    if missing and who == "artifact":
        needs.check_cpu(plan)
    vllm, lm_eval, client = (
        build.environment(name) if missing else plan.environments[name] for name in ("vllm", "lm-eval", "canary")
    )
    if any(suite.is_hub(task.name) for task in tasks(r)):
        lm_eval = lm_eval.online()
    return observe(
        _subject(build, who, name, digest, checkpoint, proved="proof" in parts),
        Questions(
            tasks=tasks(r),
            seed=r.evaluate.seed,
            windows=need(build.held_out).folder / "tokens.jsonl",
            top_k=r.evaluate.top_k,
            load=describe.load(r.measure),
            start_timeout=r.limits.server_start_minutes * 60,
            timeout=build.limit,
            stop=stop,
            domains=need(build.held_out).result.domains,
            continue_tokens=r.evaluate.perplexity.continue_tokens,
            needle=Hidden(**r.evaluate.needle.model_dump()) if r.evaluate.needle else None,
        ),
        store=build.store,
        inputs={part: step.inputs for part, step in parts.items()},
        keys={part: plan.key(f"{who}.{part}") for part in parts},
        vllm=vllm,
        lm_eval=lm_eval,
        client=client,
        log=build.store.log(who, plan.key(f"{who}.performance")),
        progress=build.console.progress,
        tell=build.console.tell,
        rivals=rivals,
    )
