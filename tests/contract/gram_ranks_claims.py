"""What has to hold of gram in several processes. Run as gram_claims.py is."""

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path

import torch
from gram_architecture_claims import MORE, model
from gram_claims import CPU, EIGHT_BITS, config_of, main, model_of, rows_of, run_of

from quantize.gram import launch as launching
from quantize.gram.grid import Grid
from quantize.gram.job import Impossible, work
from quantize.gram.launch import RankDied, launch, run_rank
from quantize.gram.layer import Settings
from quantize.gram.matrices import Gram
from quantize.gram.ranks import Ranks
from quantize.gram.stream import Run, dealt

start = launching.multiprocessing.start_processes


def forked(*arguments, **more):
    """Processes forked from one that has imported all this. A dozen that each import torch take a minute to start."""
    return start(*arguments, **{**more, "start_method": "forkserver"})


ROOT = Path(__file__).resolve().parents[2]
PLAIN = {"bits": 4, "symmetric": False, "group_size": 32}
JOBS = {
    "plain": ("llama", {}),
    "tuned": ("llama", {"iterations": 6}),
    "awq": ("qwen3", {"method": "awq", "format": "awq"}),
    "eight": ("llama", {"method": "smoothquant", "grid": {
        "bits": 8, "symmetric": True, "group_size": None, "float8": True, "activations": True}}),
    "experts": ("qwen3_moe", {"method": "gptq"}),
    "tuned experts": ("mixtral", {"iterations": 3}),
    "fp4": ("llama", {"iterations": 3, "grid": {
        "bits": 4, "symmetric": True, "group_size": 16, "activations": True, "fp4": "nv"}}),
    "mixed": ("llama", {"grid": {**PLAIN, "symmetric": True}, "mixed": {
        "budget": 5.5, "shards": 1, "choices": [], "per_token": False,
        "grids": [{"bits": bits, "symmetric": True, "group_size": size} for bits in (4, 8) for size in (32, 16)]}}),
    "mixed formats": ("mixtral", {"grid": {**PLAIN, "symmetric": True}, "mixed": {
        "budget": 7.5, "shards": 1, "per_token": True,
        "choices": [{"layers": "re:.*experts.*", "grids": [0]}, {"layers": "re:.*", "grids": [1, 2]}],
        "grids": [{"bits": 4, "symmetric": True, "group_size": 16, "fp4": "nv"},
                  {"bits": 8, "symmetric": True, "group_size": None, "float8": True, "activations": True}, None]}}),
    "one share": ("llama", {"tokens": "few.jsonl"}),
    "rtn": ("llama", {"method": "rtn", "tokens": None}),
}  # fmt: skip
"""What is quantized in one process and in several: a model, and what its job asks beside PLAIN."""


def entry(rank, count, folder, jobs, dies=None):
    """A process that does jobs; with `dies` rank 1 kills itself in that layer."""
    torch.set_num_threads(1)
    if rank == 1 and dies is not None:
        original = Run._layer

        def dying(self, index, *more):
            if index == dies:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, index, *more)

        Run._layer = dying

    def all_of_them(ranks):
        return [work(job, lambda *_: None, ranks) for job in jobs]

    run_rank(rank, count, folder, all_of_them)


def job(folder, name, out):
    kind, more = JOBS[name]
    return {
        "checkpoint": str(folder / kind), "method": "awq+gptq", "grid": PLAIN,
        "format": "compressed-tensors", "mixed": None, "ignore": ["lm_head"], "damping": 0.01, "iterations": 0,
        "trust_remote_code": False,
        "scratch": str(folder / f"{out} {name} scratch"), "out": str(folder / f"{out} {name}"), "save_every": 0.0,
        **more, "tokens": more.get("tokens", "rows.jsonl") and str(folder / more.get("tokens", "rows.jsonl")),
    }  # fmt: skip


def lay_out(folder):
    """The models, and rows that make three shares."""
    folder.mkdir()
    for kind in {kind for kind, _ in JOBS.values()}:
        (model(kind) if kind in MORE else model_of(kind)).save_pretrained(folder / kind)
    rows = rows_of(150, longest=90)
    assert len(dealt(rows)) == 3
    for name, some in (("rows", rows), ("few", rows[:5])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in some))


def files(job):
    """Every file of an artifact."""
    return {path.name: path.read_bytes() for path in (Path(job["out"]) / "checkpoint").iterdir()}


def claim_any_number_of_processes_gives_the_same_bytes(folder):
    folder = folder / "equal"
    lay_out(folder)
    alone = [job(folder, name, "alone") for name in JOBS]
    for one in alone:
        work(one, lambda *_: None)
    for count in (2, 3):
        shared = [job(folder, name, f"{count}") for name in JOBS]
        answers = launch(count, entry, shared)
        for name, one, other, answer in zip(JOBS, alone, shared, answers, strict=True):
            assert answer["quantized_layers"] > 0
            expected, found = files(one), files(other)
            assert len(expected) > 2
            wrong = [file for file in {*expected, *found} if expected.get(file) != found.get(file)]
            assert wrong == [], (count, name, wrong)


def claim_a_process_that_dies_ends_all_and_any_number_resumes_to_the_same_bytes(folder):
    folder = folder / "killed"
    lay_out(folder)
    whole = job(folder, "tuned", "whole")
    work(whole, lambda *_: None)
    killed = job(folder, "tuned", "killed")
    said = ""
    try:
        launch(2, entry, [killed], 2)
    except RankDied as error:
        said = str(error)
    assert said.startswith("process 2 of 2 was ended by SIGKILL"), said or "nobody noticed"
    layers = []
    work(killed, lambda done, total, _: layers.append(done) if total else None)
    assert layers == [3], layers
    assert files(killed) == files(whole)


def claim_what_one_process_finds_impossible_names_the_layer(folder):
    folder = folder / "broken"
    lay_out(folder)
    broken = model_of("llama")
    broken.get_parameter("model.layers.1.mlp.down_proj.weight").data.fill_(torch.nan)
    broken.save_pretrained(folder / "llama")
    said = ""
    try:
        launch(2, entry, [job(folder, "plain", "broken")])
    except Impossible as error:
        said = str(error)
    assert said.startswith("model.layers.1.mlp.down_proj: its weights hold NaN"), said


def claim_the_engines_worker_shares_a_job_and_one_process_reports(folder):
    folder = folder / "worker"
    lay_out(folder)
    sys.path[:0] = [str(ROOT / "quantize" / "engines" / "workers"), str(ROOT / "qpack" / "runtime" / "workerlib")]
    import gram_worker

    launching.multiprocessing.start_processes = start  # as the engine starts them

    asked = {key: value for key, value in job(folder, "plain", "shared").items() if key not in ("out", "save_every")}
    asked["grid"] = {**asked["grid"], "float8": False, "activations": False, "fp4": ""}
    order = gram_worker.decode(gram_worker.Job, asked)
    reading, writing = os.pipe()
    os.environ[gram_worker.EVENTS] = str(writing)
    made = {}
    for count in (1, 2):
        out = folder / f"made by {count}"
        answer = gram_worker.work(order, str(out), count)
        assert answer.quantized_layers == 21
        made[count] = files({"out": out})
    os.close(writing)
    with os.fdopen(reading) as events:
        said = [json.loads(line) for line in events]
    assert [(one["done"], one["total"]) for one in said if one["what"] == "layers"] == [(1, 3), (2, 3), (3, 3)] * 2
    assert made[1] == made[2]


def claim_shares_and_sites_are_dealt_out_whole_and_evenly(_):
    draw = random.Random(5)
    for _ in range(300):
        count = draw.randrange(1, 10)
        ranks = [Ranks(rank, count) for rank in range(count)]
        things = draw.randrange(40)
        spans = [ranks[0].span(things, rank) for rank in range(count)]
        assert [thing for span in spans for thing in span] == list(range(things))
        assert max(map(len, spans)) - min(map(len, spans)) <= 1
        costs = [draw.random() ** 3 for _ in range(draw.randrange(1, 30))]
        owners = ranks[-1].owners(costs)
        loads = [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(count)]
        assert max(loads) <= sum(costs) / count + max(costs)
        rows = [[0] * draw.randrange(1, 600) for _ in range(draw.randrange(1, 90))]
        shares = dealt(rows)
        assert sorted(map(len, rows), reverse=True) == [len(row) for share in shares for row in share]
        tokens = [sum(map(len, share)) for share in shares]
        assert len(shares) <= 8
        assert len(shares) == 1 or max(tokens) <= sum(tokens) / len(shares) + max(map(len, rows))


def claim_sums_over_shares_have_the_same_bits_however_ranks_split_them(_):
    draw = random.Random(6)
    for _ in range(60):
        shares, count, channels = draw.randrange(1, 14), draw.randrange(1, 9), draw.choice((8, 200))
        inputs = [torch.randn(draw.randrange(0, 9), channels) for _ in range(shares)]
        alone = Gram(channels, CPU)
        for share, rows in enumerate(inputs):
            alone.add(rows)
            alone.close(share)
        whole = Gram(channels, CPU)
        for rank in range(count):
            part = Gram(channels, CPU)
            for share in Ranks(0, count).span(shares, rank):
                part.add(inputs[share])
                part.close(share)
            whole._nodes |= part._nodes
            whole.tokens += part.tokens
        whole._merge()
        together = torch.cat(inputs)
        found = alone.mean()
        assert torch.equal(found, whole.mean())
        assert torch.allclose(found, together.T @ together / max(1, len(together)), atol=1e-5)


def claim_rows_that_make_one_share_are_summed_as_they_come(folder):
    model_of("llama").save_pretrained(folder / "few")
    settings = Settings("gptq", Grid(4, True, 32), 0.01, ("lm_head",))
    few = run_of(folder / "few", folder / "few-scratch", settings=settings, config=config_of("llama"))
    assert len(few.shares) == 1
    assert [len(row) for row in few.shares[0]] == sorted(map(len, few.rows), reverse=True)
    eight = dataclasses.replace(settings, method="smoothquant", grid=EIGHT_BITS[0])
    run_of(folder / "few", folder / "few-eight", settings=eight, config=config_of("llama")).run()


if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["torch", "transformers.models.llama.modeling_llama"])
    launching.multiprocessing.start_processes = forked
    main(Path(sys.argv[1]), globals())
