"""The performance table of served models: Llama 3 8B and 70B by format and number of GPUs. Random weights.

    python benchmarks/serving_table.py --out DIR                          # every row that this machine's GPUs hold
    python benchmarks/serving_table.py --out DIR --only 70b-awq,70b-fp8   # some rows
    python benchmarks/serving_table.py --out DIR --tiny                   # small shapes, to try it on a CPU
    python benchmarks/serving_table.py --table DIR                        # the table of the rows that are in DIR

Each row is one `qpack bench FOLDER --random-weights`: vLLM makes the weights in the format itself, so no checkpoint has
to fit on the disk. `70b-awq` is a release instead, run by `qpack serve` and measured by `qpack bench URL`: `qpack
canary` and `qpack drift` check it, then one of its GPU workers is killed, and what becomes of the server is recorded.
`8b-bf16` also generates with plain transformers, sequence by sequence and in batches. Rows of one GPU run side by side,
one per GPU. The canary asks for JSON, so the release needs a tokenizer that can spell it: `--tokenizer FOLDER`, of any
model.

DIR gets one JSON file per row as soon as it is measured, with what nvidia-smi says of memory, and the logs. A row that
is in DIR already isn't measured again; no row is begun that `--budget` seconds don't leave time for. Environments come
from `qpack envs build` or QPACK_ENV_NAME.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from large_models import LLAMA_70B  # noqa: E402
from llama_shapes import QUANTIZED, SHAPE, make  # noqa: E402
from shipped_recipes import SMALL  # noqa: E402

import tests.unit.registry_examples as examples  # noqa: E402
from evals.measure.bench import Benched  # noqa: E402
from evals.server import footprint  # noqa: E402
from evals.server.codes import NO_RESPONSE, SERVER_ENDED  # noqa: E402
from qpack.core.errors import EvaluateError  # noqa: E402
from qpack.core.hashing import digest_tree  # noqa: E402
from qpack.core.side_by_side import run_median  # noqa: E402
from qpack.pipeline.planned_serving import COMPACT_JSON, STRUCTURED  # noqa: E402
from qpack.runtime import hardware  # noqa: E402
from quantize.checkpoint import from_config  # noqa: E402
from quantize.checkpoint.source import Source  # noqa: E402
from quantize.engines.protocol import Request  # noqa: E402
from quantize.preflight import sizes  # noqa: E402
from registry.core.protocol import PushRequest  # noqa: E402
from registry.local.registry import LocalRegistry  # noqa: E402
from registry.release import release_folder  # noqa: E402
from registry.serving import metrics  # noqa: E402
from registry.serving.serving_manifest import (  # noqa: E402
    Probes,
    ServedModel,
    ServingEngine,
    ServingManifest,
    version_range,
)

GIB = 2**30
SHAPES = {"8b": SHAPE, "70b": {**SHAPE, **LLAMA_70B}}
START_SECONDS = 330.0


@dataclass(frozen=True)
class Row:
    """One row: a shape, a format of `llama_shapes.QUANTIZED`, the scheme whose size qpack estimates for it, and the
    figures of the same model on A100s that this project was given at its start.
    """

    shape: str
    form: str
    scheme: str
    gpus: int = 1
    a100: str = ""
    served: bool = False
    against_transformers: bool = False
    seconds: float = 180.0

    @property
    def name(self) -> str:
        """As in `--only`, and of its file."""
        return f"{self.shape}-{self.form.partition('-')[0]}"


ROWS = (
    Row("70b", "awq", "W4A16_ASYM", 2, "40 GB and 700 tok/s on two", served=True, seconds=330.0),
    Row("70b", "fp8-dynamic", "FP8_DYNAMIC", 2, seconds=280.0),
    Row("70b", "bf16", "BF16", 4, "140 GB and 800 tok/s on four", seconds=330.0),
    Row("8b", "bf16", "BF16", against_transformers=True, seconds=170.0),
    Row("8b", "awq", "W4A16_ASYM", seconds=105.0),
    Row("8b", "fp8-dynamic", "FP8_DYNAMIC", seconds=105.0),
)


@dataclass(frozen=True)
class Setting:
    """What is common to the rows of a run."""

    out: Path
    qpack: tuple[str, ...]
    ends: float
    tiny: bool
    repeats: int
    kv_cache_gib: float
    tokenizer: Path | None

    @property
    def left(self) -> float:
        """Seconds until the budget is spent."""
        return self.ends - time.monotonic()


def folder_of(row: Row, setting: Setting) -> Path:
    """A checkpoint folder of the row's shape without weights."""
    shape = {**SHAPES[row.shape], **(SMALL if setting.tiny else {})}
    folder = setting.out / "shapes" / row.name
    ends = {"bos_token_id": 1, "eos_token_id": 2} if setting.tiny or setting.tokenizer else {}
    make(folder, QUANTIZED[row.form], shape={**shape, **ends}, tokenizer=setting.tokenizer)
    if setting.tokenizer is not None:
        lengthen(folder / "tokenizer.json", shape["vocab_size"])
    return folder


def lengthen(path: Path, size: int) -> None:
    """Add words that no text has, so that every token of the model can be spelled."""
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    used = {*words.values(), *(token["id"] for token in tokenizer["added_tokens"])}
    words.update({f"Ġqpack{i}": i for i in range(size) if i not in used})
    path.write_text(json.dumps(tokenizer, ensure_ascii=False))


def flags(row: Row, setting: Setting) -> dict[str, Any]:
    """Flags of vLLM for a row."""
    parallel = {"tensor-parallel-size": row.gpus} if row.gpus > 1 else {}
    return {**parallel, **({"enforce-eager": True} if setting.tiny else {})}


def load_of(row: Row, setting: Setting) -> list[str]:
    """Options of `qpack bench`: 512 tokens in and 128 out."""
    if setting.tiny:
        return ["--concurrency", "1,4", "--input-tokens", "32", "--output-tokens", "8", "--repeats", "1"]
    repeats = setting.repeats if row.gpus == 1 else 1
    return [
        "--concurrency",
        "1,16,64,256",
        "--input-tokens",
        "512",
        "--output-tokens",
        "128",
        "--repeats",
        f"{repeats}",
    ]


def measure(row: Row, setting: Setting, gpus: Sequence[int] | None) -> None:
    """Measure a row and write its file. A failure is written too: what was asked, and how it ended."""
    begun = time.monotonic()
    report(f"{row.name}: begun")
    environment = {**os.environ, "QPACK_HOME": str(setting.out / "home")}
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
    with Memory() as watched:
        try:
            found = (serve_and_bench if row.served else bench)(row, setting, environment)
        except (OSError, subprocess.SubprocessError, ValueError, EvaluateError) as error:
            found = {"failed": f"{type(error).__name__}: {error}"[:2000]}
    devices = range(row.gpus) if gpus is None else gpus
    # What was in use before counts for somebody else.
    found["nvidia_smi_peak_mib"] = [watched.peak[device] - watched.before[device] for device in devices
                                    if device in watched.peak]  # fmt: skip
    found |= {"row": row.name, "seconds": round(time.monotonic() - begun, 1), "tiny": setting.tiny}
    found["estimated_weights_bytes"] = estimated(row)
    (setting.out / f"{row.name}.json").write_text(json.dumps(found, indent=1))
    report(f"{row.name}: {found.get('failed') or 'measured'} after {found['seconds']} s")


def estimated(row: Row) -> int:
    """Bytes of weights on one device by the manifest's estimate: the files' size, computed, over the devices."""
    source = from_config.filled(Source(row.name, "folder", row.name, None, None), SHAPES[row.shape])
    asked = Request("rtn", row.scheme, 128 if "W4" in row.scheme else None, ("lm_head",), 0.0, False)
    return -(-sizes.weights_bytes(source, asked) // row.gpus)


def bench(row: Row, setting: Setting, environment: Mapping[str, str]) -> dict[str, Any]:
    """`qpack bench FOLDER`."""
    result = setting.out / f"{row.name}.bench.json"
    command = [*setting.qpack, "bench", str(folder_of(row, setting)), "--random-weights", *load_of(row, setting)]
    command += [part for flag, value in flags(row, setting).items() for part in ("--flag", f"{flag}={value}")]
    if row.gpus > 1:
        command += ["--kv-cache-gib", f"{setting.kv_cache_gib}"]
    if row.against_transformers:
        command.append("--against-transformers")
    code, _ = run([*command, "--max-model-len", context(setting), "-o", str(result)], setting, environment, row.name)
    if code != 0 or not result.exists():
        return {"failed": f"exit code {code}: {end_of(setting, row.name)}", "command": command}
    (measured,) = json.loads(result.read_text())
    return {"bench": measured, "command": command}


def context(setting: Setting) -> str:
    """Tokens of the longest request."""
    return "1024" if setting.tiny else "8192"


def run(command: list[str], setting: Setting, environment: Mapping[str, str], name: str) -> tuple[int, str]:
    """A command of qpack's, within what is left of the budget; its exit code and stdout. The log has stderr too."""
    with (setting.out / f"{name}.log").open("a") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        started = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True, start_new_session=True
        )
        try:
            said, _ = started.communicate(timeout=max(10.0, setting.left))
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGINT)  # qpack stops its server
            said, _ = started.communicate(timeout=60)
        log.write(said)
    return started.returncode, said


def end_of(setting: Setting, name: str) -> str:
    """The end of a row's log."""
    return (setting.out / f"{name}.log").read_text(errors="replace")[-1500:]


def serve_and_bench(row: Row, setting: Setting, environment: Mapping[str, str]) -> dict[str, Any]:
    """`qpack serve REF`; against it `qpack bench URL`, `qpack canary` and `qpack drift`; then one worker is killed."""
    folder, port = folder_of(row, setting), "18080"
    manifest = publish(row, setting, folder)
    home, url = setting.out / "home", f"http://127.0.0.1:{port}"
    found: dict[str, Any] = {"kv_cache_bytes_per_device": manifest.kv_cache_memory_bytes}
    log = (setting.out / f"{row.name}.serve.log").open("w")
    served = subprocess.Popen(
        [*setting.qpack, "serve", row.name, "--port", port, "--trust-release"],
        stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        begun = time.monotonic()
        wait_healthy(served, url, min(START_SECONDS, setting.left))
        found["start_seconds"] = round(time.monotonic() - begun, 1)
        found["nvidia_smi_ready_mib"] = gpu_memory()
        result = setting.out / f"{row.name}.bench.json"
        code, _ = run(
            [*setting.qpack, "bench", url, *load_of(row, setting), "-o", str(result)], setting, environment, row.name
        )
        if code != 0:
            return {**found, "failed": f"qpack bench ended with {code}: {end_of(setting, row.name)}"}
        (found["bench"],) = json.loads(result.read_text())
        found["bench"]["footprint"] = held(home, url)
        for name, more in (("canary", []), ("drift", [row.name, "--trust-release"])):
            code, said = run([*setting.qpack, name, url, *more, "--json"], setting, environment, row.name)
            found[name] = {"code": code, "said": parsed(said)}
        found["killed"] = kill_a_worker(served, log.name)
    finally:
        if served.poll() is None:
            os.killpg(served.pid, signal.SIGINT)
            try:
                served.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(served.pid, signal.SIGKILL)
        log.close()
    return found


def publish(row: Row, setting: Setting, model: Path) -> ServingManifest:
    """A release of the shape in the local registry: `load-format: dummy`, so it needs permission to be served."""
    machine = hardware.detect()
    version = vllm_version()
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")  # no tensors: vLLM makes them
    files, digest = digest_tree(model)
    manifest = ServingManifest(
        model=ServedModel(name=row.name, digest=digest, served_model_name=row.name),
        engine=ServingEngine(version=version, versions=version_range(version)),
        hardware=machine.target,
        dtype="auto",
        max_model_len=int(context(setting)),
        kv_cache_memory_bytes=int((0.2 if setting.tiny else setting.kv_cache_gib) * GIB),
        arguments={STRUCTURED: COMPACT_JSON, "load-format": "dummy", **flags(row, setting)},
        environment={"VLLM_CPU_OMP_THREADS_BIND": "nobind"} if machine.target == "cpu" else {},
        probes=Probes(startup_budget_seconds=int(START_SECONDS)),
    )
    manifest = manifest.model_copy(update={"metrics": metrics.contract(manifest)})
    example = examples.release()
    about = {"files": files, "digest": digest, "weights_bytes": row.gpus * estimated(row)}
    release = example.model_copy(
        update={
            "name": row.name,
            "quantized": example.quantized.model_copy(
                update={**about, "method": "none", "scheme": "BF16", "group_size": None, "format": None}
            ),
            "artifact": example.artifact.model_copy(update={"model_digest": digest}),
        }
    )
    scratch = setting.out / "release"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    release_folder.lay_out(scratch, checkpoint=model, source=model, release=release, serving=manifest)
    request, notes = PushRequest(row.name, None, "latest", actor="benchmark"), release_folder.oci_annotations(release)
    LocalRegistry(setting.out / "home" / "registry").push(scratch, request, annotations=notes)
    return manifest


def vllm_version() -> str:
    """The version in the interpreter that will serve."""
    python = os.environ.get("QPACK_ENV_VLLM")
    if not python:
        from evals.server.eval_environments import VLLM
        from qpack.runtime import environments

        variant = "cpu" if hardware.detect().target == "cpu" else "cuda"
        packages = environments.resolve(VLLM, variant, Path(os.environ["QPACK_HOME"])).record().packages
        return packages.get("vllm") or packages["vllm-cpu"]
    code = "import importlib.metadata as m; print(m.version('vllm'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def wait_healthy(served: subprocess.Popen[Any], url: str, seconds: float) -> None:
    """Until the server answers. Raises EvaluateError."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if served.poll() is not None:
            raise EvaluateError(SERVER_ENDED, f"qpack serve ended with {served.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise EvaluateError(NO_RESPONSE, f"not healthy after {seconds:.0f} s")


def held(home: Path, url: str) -> dict[str, Any] | None:
    """The server's memory by its log and its metrics."""
    logs = sorted((home / "logs").glob("serve-*.log"), key=lambda path: path.stat().st_mtime)
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        scraped = answer.read().decode()
    try:
        read = footprint.read(logs[-1].read_text(errors="replace"), scraped, resident_bytes=None, max_model_len=8192)
    except EvaluateError:
        return None
    return read.model_dump()


def kill_a_worker(served: subprocess.Popen[Any], log: str) -> dict[str, Any]:
    """Kill the last tensor parallel worker (or the engine, without workers), and see what `qpack serve` makes of it."""
    every = psutil.Process(served.pid).children(recursive=True)
    named = [(process, " ".join(process.cmdline())) for process in every]
    workers = [(process, line) for process, line in named if "Worker" in line.partition(" ")[0]]
    engines = [(process, line) for process, line in named if "EngineCore" in line.partition(" ")[0]]
    if not workers and not engines:
        return {"failed": "no worker was found", "processes": [line[:80] for _, line in named]}
    victim, line = max(workers or engines, key=lambda pair: pair[1])
    begun = time.monotonic()
    victim.kill()
    found: dict[str, Any] = {"killed": line.strip(), "workers": len(workers)}
    try:
        found["exit_code"] = served.wait(120)
    except subprocess.TimeoutExpired:
        found["failed"] = "qpack serve goes on 120 s later"
    found["seconds"] = round(time.monotonic() - begun, 1)
    _, alive = psutil.wait_procs(every, timeout=10)
    found["left"] = [process.pid for process in alive]
    found["said"] = Path(log).read_text(errors="replace")[-1500:]
    found["nvidia_smi_after_mib"] = gpu_memory()
    return found


def parsed(said: str) -> Any:
    """The JSON in what a command printed, or the end of it."""
    try:
        return json.loads(said[said.index("{") :])
    except ValueError:
        return said[-3000:]


def gpu_memory() -> dict[int, int]:
    """MiB in use by GPU; nothing without GPUs."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return {}
    return {int(index): int(used) for index, used in (line.split(",") for line in done.stdout.splitlines())}


class Memory:
    """The most memory in use on each GPU while the block runs, in MiB, asked every two seconds."""

    def __init__(self) -> None:
        self.before, self.done = gpu_memory(), threading.Event()
        self.peak = dict(self.before)
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join(30)

    def _watch(self) -> None:
        while self.before and not self.done.wait(2.0):
            for device, used in gpu_memory().items():
                self.peak[device] = max(used, self.peak.get(device, 0))


def table(folder: Path) -> str:
    """The rows in `folder` as Markdown. A row that failed says so."""
    rows, notes = [], []
    for row in ROWS:
        path = folder / f"{row.name}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        if "bench" not in found:
            notes.append(f"{row.name}: {found.get('failed', 'not measured').splitlines()[0]}")
            continue
        one = Benched.model_validate(found["bench"])
        rows.append(_cells(row, found, one))
        notes += _notes(row, found, one)
    if not rows:
        return "\n".join(notes) + "\n"
    levels = " / ".join(str(level.concurrency) for level in one.latency.levels)
    head = ("Model", "GPUs", "GiB per GPU in use", "weights GiB per GPU: loaded, estimated", "KV tokens",
            f"TTFT p50 ms at {levels}", f"TTFT p95 ms at {levels}", f"output tok/s at {levels}",
            "on A100s")  # fmt: skip
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n\n" + "\n".join(f"- {n}" for n in notes) + "\n"


def _cells(row: Row, found: Mapping[str, Any], one: Benched) -> tuple[str, ...]:
    held, levels = one.footprint, one.latency.levels
    peak = found["nvidia_smi_peak_mib"]
    loaded = held.weights_loaded_bytes if held else None
    return (
        row.name,
        str(row.gpus),
        f"{max(peak) / 1024:.1f}" if peak else "",
        f"{loaded / GIB:.2f}, {found['estimated_weights_bytes'] / GIB:.2f}" if loaded else "",
        f"{held.kv_cache_tokens:,}" if held else "",
        *(" / ".join(f"{run_median(level, 'ttft_ms', p):,.0f}" for level in levels) for p in ("p50", "p95")),
        " / ".join(f"{statistics.median(run.output_tokens_per_second for run in level.runs):,.0f}" for level in levels),
        row.a100 or "–",
    )


def _notes(row: Row, found: Mapping[str, Any], one: Benched) -> list[str]:
    failed = sum(run.failed for level in one.latency.levels for run in level.runs)
    notes = [f"{row.name}: {failed} requests failed"] if failed else []
    if one.plain is not None:
        speeds = {batch.batch: statistics.median(batch.output_tokens_per_second) for batch in one.plain.batches}
        best = max(statistics.median(r.output_tokens_per_second for r in level.runs) for level in one.latency.levels)
        each = ", ".join(f"{speed:,.0f} in batches of {batch}" for batch, speed in speeds.items())
        notes.append(
            f"{row.name} in plain transformers: {each} output tok/s. vLLM's best is {best / speeds[1]:.1f} times one"
            f" sequence after the other, {best / max(speeds.values()):.1f} times the best batch"
        )
    if "killed" in found:
        killed = found["killed"]
        notes.append(
            f"{row.name}: after {killed.get('killed', 'no worker')} was killed, qpack serve ended with exit code "
            f"{killed.get('exit_code')} in {killed.get('seconds')} s; MiB on the GPUs: "
            f"{list(killed.get('nvidia_smi_after_mib', {}).values())}"
        )
    return notes


STARTED = time.monotonic()


def report(what: str) -> None:
    """A line with the seconds since the start."""
    print(f"[{time.monotonic() - STARTED:5.0f} s] {what}", flush=True)


def main() -> int:
    """Measure what isn't measured yet; exit code 1 when a row that was asked for has no figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="names of rows, with commas")
    parser.add_argument("--budget", type=float, default=3600.0, help="seconds for all of it")
    parser.add_argument("--repeats", type=int, default=2, help="runs per load of the rows of one GPU")
    parser.add_argument("--kv-cache-gib", type=float, default=28.0, help="per GPU, where a model is on several")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--table", type=Path, metavar="DIR")
    options = parser.parse_args()
    if options.table:
        print(table(options.table), end="")
        return 0
    if options.out is None:
        parser.error("--out is missing")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "home").mkdir(exist_ok=True)
    os.environ["QPACK_HOME"] = str(out / "home")
    gpus, only = hardware.detect().accelerators, set(filter(None, options.only.split(",")))
    qpack = shutil.which("qpack", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    setting = Setting(
        out,
        (qpack or "qpack",),
        STARTED + options.budget,
        options.tiny,
        options.repeats,
        options.kv_cache_gib,
        options.tokenizer,
    )
    wanted = [row for row in ROWS if (row.name in only if only else row.gpus <= max(gpus, 1) or options.tiny)]
    due = [row for row in wanted if not (out / f"{row.name}.json").exists()]
    for row in due:
        if row.gpus > 1:
            begin(row, setting, None)
    # Longest first, each on the GPU that is free.
    free = list(range(max(gpus, 1)))

    def alone(row: Row) -> None:
        device = free.pop()
        begin(row, setting, [device] if gpus else None)
        free.append(device)

    with ThreadPoolExecutor(len(free)) as pool:
        list(pool.map(alone, [row for row in due if row.gpus == 1]))
    print(table(out), end="")
    return 0 if all("bench" in json.loads((out / f"{row.name}.json").read_text()) for row in wanted) else 1


def begin(row: Row, setting: Setting, gpus: Sequence[int] | None) -> None:
    """Measure a row if there is time for it."""
    if not setting.tiny and setting.left < row.seconds:
        report(f"{row.name}: not begun, {setting.left:.0f} s are left and it takes about {row.seconds:.0f}")
        (setting.out / f"{row.name}.json").write_text(json.dumps({"row": row.name, "failed": "not begun: no time"}))
        return
    measure(row, setting, gpus)


if __name__ == "__main__":
    sys.exit(main())
