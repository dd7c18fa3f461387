"""Makes an artifact by gram's worker for each job, and beside it the same weights unpacked. Runs in gram's environment.

`python gram_made.py WORKER JOB...`: WORKER is gram's worker script; each JOB is a job file of it.
`out/checkpoint` is the artifact, `out/plain` a checkpoint in 16 bits with the weights that the artifact means, for
models without experts (those are stored under other names than the report's, and vLLM for CPUs doesn't serve them in 4
bits). One process for all of them: its imports take longer than the work.
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path


def main(worker, *jobs):
    """Run every job."""
    sys.path[:0] = [str(Path(worker).parent), str(Path(worker).parents[3] / "qpack" / "runtime" / "workerlib")]
    spec = importlib.util.spec_from_file_location("gram_worker", worker)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from qpack_protocol import Order, decode, encode, read, write

    for path in jobs:
        order = read(path, Order)
        Path(order.out).mkdir(parents=True)
        write(Path(order.out) / "answer.json", module.work(decode(module.Job, order.job), order.out))
        config = json.loads((Path(order.out) / "checkpoint" / "config.json").read_text())
        if not any(key.startswith("num_") and key.endswith("experts") for key in config):
            plain(Path(order.out), encode(decode(module.Job, order.job)))


def plain(out, job):
    """The artifact's weights as a server should see them, in a checkpoint that isn't quantized."""
    from gram.checkpoint import Folder, save
    from gram.formats import FORMATS
    from gram.grid import Grid

    form = FORMATS[job["format"]]
    source = Folder(out / "checkpoint")
    tensors = source.read(source.names(), "cpu")
    sites = json.loads((out / "checkpoint" / "gram_report.json").read_text())["sites"]
    for site in sites:
        for name in (f"{site['layer']}.{linear}" for linear in site["linears"]):
            parts = {key.rpartition(".")[2]: tensors.pop(key) for key in list(tensors) if key.startswith(f"{name}.")}
            kind = ("bits", "group_size", "float8", "fp4", "activations")
            asked = {**job["grid"], **{key: site[key] for key in kind}}
            grid = Grid(**asked, portable=form.portable)
            tensors[f"{name}.weight"] = form.read(parts, grid).weights(grid).bfloat16()
    shutil.copytree(out / "checkpoint", out / "plain", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    save(tensors, out / "plain" / "model.safetensors")
    config = json.loads((out / "checkpoint" / "config.json").read_text())
    del config["quantization_config"]
    (out / "plain" / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main(*sys.argv[1:])
