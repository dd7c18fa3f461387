"""How wide a ratio of speed is when there is nothing to find: one model against itself, as a build measures two.

    python benchmarks/noise.py CHECKPOINT --out noise.jsonl --label quiet
    python benchmarks/noise.py CHECKPOINT --out noise.jsonl --label busy --busy
    python benchmarks/noise.py --table noise.jsonl

Servers of the same checkpoint follow one another as in a build: each is loaded alone, then the next one is started
beside it and both are loaded in turn, then the first is stopped; each of it `--again` times. So any two of them are a
comparison of runs apart (and two turns of one server show what its start has to do with it), each pair of neighbours
one in turn, and all that their ratio differs from 1 by is noise. Speed doesn't depend on what
the weights are, so they are random, and of `--layers` layers where a whole model would be too slow for a study.
`--busy` puts other work on the same cores: a process that computes and rests for random times of `--spell` seconds in
the mean. What was measured is added to `--out` line by line; the tables are made of all its lines, with the code that
judges a build.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from evals.comparison.compare import paired, separate  # noqa: E402
from evals.gates.gates import decide  # noqa: E402
from evals.gates.multiplicity import holm, p_beyond  # noqa: E402
from evals.measure import interleave, latency  # noqa: E402
from evals.measure.eval_specs import InterleavedSpec, Load, PerformanceSpec  # noqa: E402
from evals.measure.interleave import Target  # noqa: E402
from evals.report.markdown import table  # noqa: E402
from evals.server import eval_environments, vllm_server  # noqa: E402
from evals.server.client import Endpoint  # noqa: E402
from evals.server.session import Session, Workspace  # noqa: E402
from qpack.cli import options  # noqa: E402
from qpack.core.records import Estimate  # noqa: E402
from qpack.core.speed import Level, Turns  # noqa: E402
from qpack.runtime import environments as envs  # noqa: E402

FLOORS = (0.9, 0.8, 0.7, 0.5, 0.3, 0.1)


def other_work(spell: float) -> None:
    """Compute and rest in turn, each for a random time, as long as whoever started it lives."""
    parent = os.getppid()
    while os.getppid() == parent:
        until = time.monotonic() + random.expovariate(1 / spell)
        while time.monotonic() < until:
            pass
        time.sleep(random.expovariate(1 / spell))


@contextlib.contextmanager
def busy(spell: float) -> Iterator[None]:
    """Other work beside what is measured."""
    work = multiprocessing.Process(target=other_work, args=(spell,), daemon=True)
    work.start()
    try:
        yield
    finally:
        work.terminate()
        work.join()


def study(arguments: argparse.Namespace) -> None:
    """One chain of servers; see above."""
    store = options.store()
    vllm = envs.ensure(envs.resolve(eval_environments.VLLM, "cpu", store.home), store.home, print)
    levels = tuple(map(int, arguments.concurrency.split(",")))
    load = Load(concurrency=levels, input_tokens=64, output_tokens=32, repeats=3)
    variables = {**vllm.variables, "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
    checkpoint = arguments.checkpoint.resolve()
    chain = f"{arguments.label} {time.strftime('%H:%M:%S')}"
    quiet = lambda *_: None  # noqa: E731

    def command(host: str, port: int) -> list[str]:
        words = f"--enforce-eager --dtype {arguments.dtype} --max-model-len 512 --host {host} --port {port}"
        words += f" --load-format dummy --kv-cache-memory-bytes {2**29} --served-model-name model"
        shape = ["--hf-overrides", json.dumps({"num_hidden_layers": arguments.layers})] if arguments.layers else []
        return ["--model", str(checkpoint), *words.split(), *shape]

    def write(kind: str, number: int, begun: float, found: Sequence[Level] | Sequence[Turns]) -> None:
        seconds = time.monotonic() - begun
        row = {"label": arguments.label, "chain": chain, "kind": kind, "server": number, "seconds": seconds}
        row["load"] = os.getloadavg()[0]
        with arguments.out.open("a") as file:
            file.write(json.dumps(row | {"levels": [level.model_dump(mode="json") for level in found]}) + "\n")
        print(f"server {number}: {kind}, {seconds:.0f} s", flush=True)

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        scratch, before = Path(folder), None
        if arguments.busy:
            stack.enter_context(busy(arguments.spell))
        for number in range(arguments.starts):
            up, begun = contextlib.ExitStack(), time.monotonic()
            stack.push(up)
            started = vllm_server.Command(vllm.python, command, variables)
            log = scratch / f"{number}.log"
            server = up.enter_context(vllm_server.running(started, model="model", log=log, timeout=900, progress=quiet))
            print(f"server {number}: up after {time.monotonic() - begun:.0f} s", flush=True)
            after = Target(server.base_url, "model", checkpoint)
            workspace = Workspace({"vllm": vllm}, scratch / "load", scratch / "load.log")
            for again in range(arguments.again if before is not None else 0):
                # As in a build: the artifact was measured alone, and the baseline is started beside it.
                begun, seed = time.monotonic(), 10_000 * number + 100 * again
                spec = InterleavedSpec(load, arguments.rounds, seed)
                turns = interleave.measure(workspace, spec, reference=after, subject=before[1])
                write("in turn", number, begun, turns.levels)
            if before is not None:
                before[0].close()
            for again in range(arguments.again):
                begun, seed = time.monotonic(), 10_000 * number + 100 * again
                endpoint = Endpoint(after.base_url, "model", chat=False)
                session = Session(endpoint=endpoint, workspace=workspace, tokenizer=checkpoint)
                alone = latency.measure(session, PerformanceSpec(load, seed))
                write("alone", number, begun, alone.levels)
            before = (up, after)


def comparisons(rows: Sequence[dict]) -> Iterator[tuple[str, str, dict[int, Estimate]]]:
    """(label, way, ratio of throughput by clients) of every comparison that the rows hold."""
    chains = defaultdict(list)
    for row in rows:
        chains[row["label"], row["chain"]].append(row)
    for (label, _), chain in sorted(chains.items()):
        alone = [row for row in chain if row["kind"] == "alone"]
        for first, second in itertools.combinations(alone, 2):
            way = "apart" if first["server"] != second["server"] else "apart, one server"
            pairs = zip(first["levels"], second["levels"], strict=True)
            ratios = [separate(Level.model_validate(b), Level.model_validate(a)) for b, a in pairs]
            yield label, way, {ratio.concurrency: ratio.throughput for ratio in ratios}
        for row in chain:
            if row["kind"] == "in turn":
                ratios = [paired(Turns.model_validate(level)) for level in row["levels"]]
                yield label, "in turn", {ratio.concurrency: ratio.throughput for ratio in ratios}


def verdict(figures: Sequence[Estimate], floor: float) -> str:
    """What a build would say of these figures and no others."""
    said = [decide(one, "min", floor)[0] for one in figures]
    p_values = holm([p_beyond(one, "min", floor, logarithmic=True) or 0.0 for one in figures])
    if any(answer == "fail" and p <= 0.05 for answer, p in zip(said, p_values, strict=True)):
        return "fail"
    return "pass" if set(said) == {"pass"} else "undecided"


def tables(rows: Sequence[dict]) -> str:
    """How wide, how often 1 is inside, and what gates would say."""
    found, builds = defaultdict(list), defaultdict(list)
    for label, way, figures in comparisons(rows):
        builds[label, way].append(list(figures.values()))
        for clients, one in figures.items():
            found[label, way, str(clients)].append(one)
            found[label, way, "all"].append(one)
    wide = []
    for who, some in sorted(found.items()):
        logs = [math.log(one.value) for one in some]
        spans = [(i.low, i.high) for one in some if (i := one.interval)]
        half = statistics.median(math.sqrt(high / low) for low, high in spans)
        held = sum(low <= 1 <= high for low, high in spans)
        wide.append(
            (
                *who,
                str(len(some)),
                f"{math.exp(min(logs)):.3f} to {math.exp(max(logs)):.3f}",
                f"×/÷ {math.exp(math.sqrt(statistics.fmean(x * x for x in logs))):.3f}",
                f"×/÷ {half:.3f}",
                f"{held} of {len(spans)}",
                f"{min(low for low, _ in spans):.3f}",
            )
        )
    gates = []
    for (label, way), some in sorted(builds.items()):
        for floor in FLOORS:
            said = [verdict(figures, floor) for figures in some]
            gates.append((label, way, f"{floor:g}", *(str(said.count(x)) for x in ("pass", "undecided", "fail"))))
    head = ("Machine", "Way", "Clients", "Ratios", "From, to", "Spread", "Half interval", "1 inside", "Lowest end")
    return "\n".join((*table(head, wide), "", *table(("Machine", "Way", "Floor", "Pass", "Undecided", "Fail"), gates)))


def main() -> None:
    """Measure, or make the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, default=Path("noise.jsonl"))
    parser.add_argument("--label", default="quiet", help="What the tables call the machine's state.")
    parser.add_argument("--starts", type=int, default=4)
    parser.add_argument("--again", type=int, default=2, help="How often each way is measured with the same servers.")
    parser.add_argument("--layers", type=int, help="Layers of the model; all when not given.")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--concurrency", default="1,4,8")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--spell", type=float, default=10.0)
    parser.add_argument("--table", type=Path, nargs="+", help="Only print the tables of these files.")
    arguments = parser.parse_args()
    if arguments.table:
        rows = [json.loads(line) for file in arguments.table for line in file.read_text().splitlines()]
        print(tables(rows))
        return
    if arguments.checkpoint is None:
        parser.error("a checkpoint, or --table")
    study(arguments)


if __name__ == "__main__":
    main()
