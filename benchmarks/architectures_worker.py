"""Runs jobs of one engine's worker one after the other in its environment: imports take longer than a job.

    PYTHON architectures_worker.py WORKERS WORKERLIB JOBS ROWS

JOBS has one JSON object a line: engine, name, seconds, out and the job as the worker takes it. For each a line is
appended to ROWS: how it went, and how far the artifact's logits are from the source's. `restarted` jobs are skipped.
"""

import gc
import importlib
import json
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

UNPACKED = "unpacked"


class TooLong(Exception):
    """A job took more seconds than it may."""


def main(workers, workerlib, jobs, rows):
    """Every job that has no row yet."""
    sys.path[:0] = [workers, workerlib]
    import qpack_worker

    qpack_worker._event = lambda event: None  # noqa: ARG005
    done = {json.loads(line)["name"] for line in Path(rows).read_text().splitlines()} if Path(rows).exists() else set()
    for line in Path(jobs).read_text().splitlines():
        asked = json.loads(line)
        if asked["name"] in done:
            continue
        row = {"name": asked["name"], **tried(asked)}
        with open(rows, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        gc.collect()


def tried(asked):
    """Quantize, then compare."""
    import torch
    from qpack_protocol import decode

    worker = importlib.import_module(f"{asked['engine']}_worker")
    started, out = time.monotonic(), asked["out"]
    shutil.rmtree(out, ignore_errors=True)
    Path(out).mkdir(parents=True)

    def alarm(*_):
        raise TooLong(f"more than {asked['seconds']} s")

    signal.signal(signal.SIGALRM, alarm)
    signal.alarm(asked["seconds"])
    stage, row = "quantize", {}
    try:
        with torch.random.fork_rng():
            answer = worker.work(decode(worker.Job, asked["job"]), out)
        row = {"quantized": answer.quantized_layers, "linears": answer.linear_layers}
        row["seconds"] = round(time.monotonic() - started, 1)
        stage = "compare"
        row |= compared(asked["job"]["checkpoint"], Path(out) / "checkpoint", out)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        words = " ".join(f"{type(error).__name__}: {error}".split())
        row |= {"failed": stage, "what": words[:300], "at": f"{Path(last.filename).name}:{last.lineno}"}
        row["trace"] = traceback.format_exc()[-3000:]
    finally:
        signal.alarm(0)
    return row


def compared(source, artifact, out):
    """How far logits are from the source's, as a share of them: `error` of the unpacked artifact, `rounded` of the same
    layers rounded to nearest by the code below. Both send tokens to the experts that the source sends them to; `moved`
    is how many the artifact alone would send elsewhere.
    """
    import routing
    import torch

    unpacked = Path(out) / UNPACKED
    ids = torch.arange(48).mul(37).remainder(1900).add(5).view(1, -1)
    with routing.noted() as noted:
        first = logits(source, ids)
    choices, found = [calls[-1] for calls in noted], {}
    for name, by in (("error", held_values), ("rounded", nearest_values)):
        unpack(source, artifact, unpacked, by)
        with routing.kept(choices) as moved:
            found[name] = round(float((first - logits(unpacked, ids)).norm() / first.norm()), 4)
        if moved and name == "error":
            found["moved"] = sum(moved)
        shutil.rmtree(unpacked)
    return found


def logits(folder, ids):
    """Of a plain checkpoint, by the class that its config names. Raises where tensors are missing or left over."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    named = getattr(transformers, (config.architectures or [""])[0], transformers.AutoModelForCausalLM)
    with torch.random.fork_rng():
        model, loaded = named.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        lost = sorted(loaded["missing_keys"])
        if lost:
            raise ValueError(f"{lost[0]} is missing ({len(lost)} tensors)")
        given = {"input_ids": ids, "use_cache": False}
        if config.is_encoder_decoder:
            given = {"input_ids": ids, "decoder_input_ids": ids}
            if hasattr(config, "num_mel_bins"):
                sound = torch.linspace(-1, 1, config.num_mel_bins * 2 * config.max_source_positions)
                given["input_features"] = sound.view(1, config.num_mel_bins, -1)
                del given["input_ids"]
        with torch.no_grad():
            out = model.eval()(**given)
    return (out.logits if "logits" in out else out[0]).float()


def unpack(source, artifact, target, by):
    """The artifact as a plain checkpoint in the source's layout: every quantized tensor with the values of `by`."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    plain = {name: tensor for file in Path(source).glob("*.safetensors") for name, tensor in load_file(file).items()}
    held = {name: tensor for file in Path(artifact).glob("*.safetensors") for name, tensor in load_file(file).items()}
    values = {}
    for name in held:
        if name.endswith((".weight_scale", ".scales")):
            stem = name.rpartition(".")[0]
            values[f"{stem}.weight"] = by(stem, held, plain)
    for name, tensor in held.items():
        if name in plain and name not in values and by is held_values:
            values[name] = tensor
    if by is nearest_values:
        # The source's own norms: the artifact's may have taken scales out of the weights.
        values |= {name: tensor for name, tensor in plain.items() if name in held and f"{name}_scale" not in held}
    written = {name: values[name] if name in values else fused(name, plain[name], values) for name in plain}
    unknown = [name for name in values if name not in plain and not expert(name, plain)]
    if unknown:
        raise ValueError(f"the artifact has {unknown[0]}, which the source hasn't ({len(unknown)} tensors)")
    wrong = [name for name in plain if written[name].shape != plain[name].shape]
    if wrong:
        raise ValueError(f"{wrong[0]} has the shape {list(written[wrong[0]].shape)}")
    save_file({name: tensor.contiguous() for name, tensor in written.items()}, Path(target) / "model.safetensors")


def nearest_values(stem, held, plain):
    """Of a layer, its own weight rounded to the artifact's grid."""
    import torch

    made = held_values(stem, held, plain)
    weight = plain.get(f"{stem}.weight")
    if weight is None:
        weight = min(parts_of(stem, plain, made.shape), key=lambda part: float((part - made).norm()))
    weight = weight.float()
    scale = held[f"{stem}.weight_scale"]
    if f"{stem}.weight_packed" not in held:
        kept = held[f"{stem}.weight"].dtype
        most = 448.0 if kept == torch.float8_e4m3fn else 127.0
        step = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / most
        rounded = (weight / step).to(kept).float() if kept == torch.float8_e4m3fn else (weight / step).round()
        return rounded * step
    groups = weight.unflatten(1, (scale.shape[1], -1))
    if f"{stem}.weight_zero_point" not in held:
        step = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 7.5
        return ((groups / step).round().clamp(-8, 7) * step).flatten(1)
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    step = (high - low).clamp(min=1e-12) / 15
    zero = (-low / step).round()
    return (((groups / step).round() + zero).clamp(0, 15).sub(zero) * step).flatten(1)


def parts_of(stem, plain, shape):
    """Matrices of a shape in the source's fused tensors of the experts that a layer is one of."""
    block, number = stem.rpartition(".")[0].rsplit(".", 1)
    block = block.removesuffix(".experts")
    for name, whole in plain.items():
        if name.startswith(block + ".") and whole.dim() == 3:
            yield from (view for view in views_of(whole[int(number)].float()) if view.shape == shape)


def views_of(matrix):
    """Ways to hold one or two matrices in another."""
    for view in (matrix, matrix.T):
        half = view.shape[0] // 2
        yield from (view, view[:half], view[half:], view[0::2], view[1::2])


def held_values(stem, held, plain):  # noqa: ARG001
    """Of a layer, [out, in]: compressed-tensors packed or not, by its scales and zero points."""
    import torch

    scale = held[f"{stem}.weight_scale"].float()
    if f"{stem}.weight_packed" not in held:
        return blocks(held[f"{stem}.weight"].float(), scale)
    packed = held[f"{stem}.weight_packed"]
    rows, columns = held[f"{stem}.weight_shape"].tolist()
    each = -(-columns // packed.shape[1])
    bits = 32 // each
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    mask = (1 << bits) - 1
    integers = ((packed.unsqueeze(-1) >> shifts) & mask).flatten(1)[:, :columns].float()
    zero = held.get(f"{stem}.weight_zero_point")
    if zero is None:
        return blocks(integers - (1 << (bits - 1)), scale)
    zeros = ((zero.unsqueeze(1) >> shifts.view(1, -1, 1)) & mask).flatten(0, 1)[:rows].float()
    return blocks(integers - zeros.repeat_interleave(columns // zeros.shape[1], 1), scale)


def blocks(values, scale):
    """Values times scales of groups, channels, blocks or the whole tensor."""
    if scale.dim() < 2:
        return values * scale
    down, across = (-(-values.shape[i] // scale.shape[i]) for i in (0, 1))
    whole = scale.repeat_interleave(down, 0)[: values.shape[0]].repeat_interleave(across, 1)
    return values * whole[:, : values.shape[1]]


def expert(name, plain):
    """Whether it is an expert's part of a fused tensor of the source."""
    return any(
        name.startswith(stem.removesuffix(".weight").rpartition(".")[0] + ".")
        for stem in plain
        if plain[stem].dim() == 3
    )


def fused(name, whole, values):
    """A fused tensor of the source with the artifact's experts in it: each where the source's own is nearest."""
    import torch

    if whole.dim() != 3:
        raise ValueError(f"the artifact lacks {name}")
    stem = name.removesuffix(".weight").rpartition(".")[0]
    stem = stem if stem.endswith("experts") else f"{stem}.experts"
    made = whole.float().clone()
    for number in range(whole.shape[0]):
        for own in ("gate_proj", "up_proj", "down_proj"):
            part = values.get(f"{stem}.{number}.{own}.weight")
            if part is None:
                raise ValueError(f"the artifact lacks {stem}.{number}.{own}")
            fitting = [view for view in views_of(made[number]) if view.shape == part.shape]
            near = [float((view - part).norm()) for view in fitting]
            if near and min(near) < 0.5 * float(part.norm()):
                fitting[near.index(min(near))].copy_(part)
    if bool((made == whole.float()).all()):
        raise ValueError(f"{name}: no expert's values are in the artifact")
    return made.to(torch.float32)


if __name__ == "__main__":
    main(*sys.argv[1:])
