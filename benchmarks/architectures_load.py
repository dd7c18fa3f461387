"""Whether vLLM's loader takes every tensor of an artifact, and every parameter gets one: on a CPU, for GPUs' schemes.

    PYTHON architectures_load.py ROWS SECONDS FOLDER...

The model is made and its weights are read as a server would; kernels aren't prepared, and nothing runs. Where vLLM asks
which kernel multiplies quantized experts, the answer is a GPU's. ROWS gets a JSON object a line: the folder, and that
it loaded or why not. Folders that have a line are skipped.
"""

import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path

os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
# Parameters that a checkpoint needn't have: scales of activations and caches with a default, tables that are computed.
DEFAULTS = ("_zero_point", "input_scale", "k_scale", "v_scale", "q_scale", "prob_scale", "g_idx", "_g_idx_sort_indices",
            "workspace")  # fmt: skip
MARK = -0x5A5A5A5B


class TooLong(Exception):
    """A model took more seconds than it may."""


def main(rows, seconds, *folders):
    """Every folder that has no line yet."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import (
        destroy_model_parallel,
        ensure_model_parallel_initialized,
        init_distributed_environment,
    )
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.models import registry

    answers_of_a_gpu()
    # vLLM imports a model's module in a process of its own first, which takes longer than all the rest.
    registry._run_in_subprocess = lambda asked: asked()
    known = Path(rows).read_text().splitlines() if Path(rows).exists() else []
    done = {json.loads(line)["folder"] for line in known}

    def alarm(*_):
        raise TooLong(f"more than {seconds} s")

    signal.signal(signal.SIGALRM, alarm)
    first = True
    for folder in folders:
        if folder in done:
            continue
        signal.alarm(int(seconds))
        try:
            given = {"dtype": "bfloat16", "max_model_len": 128, "enforce_eager": True, "skip_mm_profiling": True}
            config = EngineArgs(model=folder, **given).create_engine_config()
            with set_current_vllm_config(config):
                if first:
                    init_distributed_environment(1, 0, f"file://{Path(rows).resolve()}.store{os.getpid()}", 0, "gloo")
                    first = False
                # The groups are the model's: those without experts have none for them.
                destroy_model_parallel()
                ensure_model_parallel_initialized(1, 1)
            with torch.device("cpu"):
                row = loaded(config)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            place = traceback.extract_tb(error.__traceback__)[-1]
            words = f"{type(error).__name__}: {' '.join(str(error).split())}"
            row = {"failed": words[:400], "at": f"{Path(place.filename).name}:{place.lineno}"}
        finally:
            signal.alarm(0)
        with open(rows, "a", encoding="utf-8") as file:
            file.write(json.dumps({"folder": folder, **row}) + "\n")
        print(folder, row, flush=True)
        gc.collect()


def answers_of_a_gpu():
    """Which kernels layers get: those of experts on Hopper, and for others one that takes every shape."""
    from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel
    from vllm.model_executor.layers.fused_moe.oracle import fp8, int8, int_wna16
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
        compressed_tensors_moe_w8a8_fp8,
        compressed_tensors_moe_w8a8_int8,
        compressed_tensors_moe_wna16,
    )

    marlin, triton = int_wna16.WNA16MoEBackend.MARLIN, fp8.Fp8MoeBackend.TRITON
    compressed_tensors_moe_wna16.select_wna16_moe_backend = lambda **_: (marlin, int_wna16.MarlinExperts)
    (floats, *_) = fp8.backend_to_kernel_cls(triton)
    compressed_tensors_moe_w8a8_fp8.select_fp8_moe_backend = lambda **_: (triton, floats)
    integers = int8.Int8MoeBackend.TRITON
    (eight, *_) = int8.backend_to_kernel_cls(integers)
    compressed_tensors_moe_w8a8_int8.select_int8_moe_backend = lambda *_, **__: (integers, eight)
    CPUWNA16LinearKernel.can_implement = classmethod(lambda *_: (True, None))


def loaded(config):
    """How many parameters the loader says it has read. A parameter that nothing was read into is an error."""
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    loader = get_model_loader(config.load_config)
    with set_default_torch_dtype(config.model_config.dtype):
        model = initialize_model(vllm_config=config, model_config=config.model_config)
    for _, parameter in model.named_parameters():
        marked(parameter.data, write=True)
    read = model.load_weights(loader.get_all_weights(config.model_config, model))
    # Where nothing was written, the mark has stayed.
    empty = [
        name
        for name, parameter in model.named_parameters()
        if not name.endswith(DEFAULTS) and marked(parameter.data, write=False)
    ]
    if empty:
        return {"failed": f"nothing was read into {empty[0]} and {len(empty) - 1} more"}
    return {"loaded": len(read) if read is not None else None, "parameters": sum(1 for _ in model.named_parameters())}


def marked(data, *, write):
    """Fill it with a value that no checkpoint has, or say whether one is left in it. Other types have no mark."""
    import torch

    if data.dtype == torch.int32:
        return bool((data.fill_(MARK) if write else data).eq(MARK).any())
    if data.is_floating_point():
        if write:
            data.copy_(torch.full_like(data, float("nan")))
        return bool(data.float().isnan().any())
    return False


if __name__ == "__main__":
    main(*sys.argv[1:])
