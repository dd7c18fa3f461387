"""What has to hold of llm-compressor's calibration on every architecture. Runs in its environment.

    PYTHON calibration_claims.py WORKERS WORKERLIB BENCHMARKS MODELS IGNORED

MODELS has a folder per architecture, IGNORED a JSON object: a folder's name -> what `qpack plan` leaves alone. Prints a
JSON object: for each name what is wrong, or null.
"""

import dataclasses
import json
import sys
import tempfile
import traceback
from pathlib import Path


def main(workers, workerlib, benchmarks, models, ignored):
    sys.path[:0] = [workers, workerlib, benchmarks]
    import layer_passes
    import qpack_worker

    qpack_worker._event = lambda _event: None
    # As on a GPU: what the rows hold is moved away between layers.
    layer_passes._LARGE, layer_passes._STAYING = 0, ()
    found = {}
    for name, ignore in json.loads(Path(ignored).read_text()).items():
        try:
            found[name] = calibrated_as_the_model_runs(Path(models) / name, tuple(ignore))
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            found[name] = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"[:400]
    print("\n" + json.dumps(found))


def calibrated_as_the_model_runs(folder, ignore):
    """GPTQ at 8 bits, which changes next to nothing: what its hooks see of the first row is compared with what the
    model gives the same layers. Experts see more than their own tokens, so that all are calibrated.
    """
    import llmcompressor_worker
    import routing
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor_job import Job
    from llmcompressor_model import load

    rows = [[(37 * i + 11 * j) % 1900 + 5 for j in range(96)] for i in range(2)]
    seen, original = {}, GPTQModifier.calibrate_module

    def watching(self, module, args, output):
        seen.setdefault(self._module_names[module], args[0].detach().clone())
        return original(self, module, args, output)

    GPTQModifier.calibrate_module = watching
    with tempfile.TemporaryDirectory() as scratch:
        tokens = Path(scratch, "tokens.jsonl")
        tokens.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
        job = Job(str(folder), str(tokens), "gptq", "W8A16", None, (), None, ignore, 0.01, False, 0, False, ())
        try:
            with routing.noted() as noted:
                llmcompressor_worker.work(job, scratch)
        finally:
            GPTQModifier.calibrate_module = original
        if folder.name == "mistral":
            # Scales are observed on a row too, and it has to be there.
            scaled = dataclasses.replace(job, method="awq", scheme="W4A16", group_size=32)
            llmcompressor_worker.work(scaled, str(Path(scratch, "awq")))
        model = load(job)
    # The last calls of experts are those whose output later layers got, one of each row.
    choices = [calls[-len(rows)] for calls in noted]
    wanted = inputs_of(model, seen, rows[0], choices)
    for name, module in model.named_modules():
        if name in seen:
            step = module.weight.abs().amax(1, keepdim=True) / 127
            module.weight.data = (module.weight / step.clamp(min=1e-9)).round() * step
    rounded = inputs_of(model, seen, rows[0], choices)
    off = {
        name: (change(seen[name], wanted[name]), change(rounded[name], wanted[name]))
        for name in wanted
        if ".experts." not in name and wanted[name].shape == seen[name].shape
    }
    if not off:
        return "no layer was calibrated"
    # Later layers are fed by rounded ones; without a causal mask the difference is 80 %.
    for name, (calibrated, by_rounding) in off.items():
        later = any(part in name for part in (".1.", ".2.", ".3."))
        if calibrated > (max(0.03, 1.25 * by_rounding + 0.01) if later else 0.01):
            return f"{name}: calibration feeds it something {calibrated:.3f} off, rounding {by_rounding:.3f}"
    return None


def change(one, other):
    """How far apart two tensors are, as a share of the other."""
    return float((one.float() - other.float()).norm() / other.float().norm().clamp(min=1e-9))


def inputs_of(model, names, row, choices):
    """What the model gives each of the named layers first, with experts chosen as in `choices`."""
    import routing
    import torch

    found, handles = {}, []
    for name, module in model.named_modules():
        if name in names:

            def hook(_, args, name=name):
                found.setdefault(name, args[0].detach().clone())

            handles.append(module.register_forward_pre_hook(hook))
    ids = torch.tensor([row])
    with torch.no_grad(), routing.kept(choices):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    for handle in handles:
        handle.remove()
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
