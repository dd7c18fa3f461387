"""What this machine is, as far as it matters to kernels and to whether two measurements can be compared."""

from __future__ import annotations

import functools
import platform
import shutil
import subprocess
from pathlib import Path

import psutil

from qpack.core.records import Hardware
from qpack.runtime import process
from qpack.runtime.variables import COMPUTE

# Compute capability to architecture, from NVIDIA's CUDA C++ programming guide, "Compute Capabilities".
_ARCHITECTURES = {"8.0": "ampere", "8.6": "ampere", "8.7": "ampere", "8.9": "ada", "9.0": "hopper",
                  "10.0": "blackwell", "10.3": "blackwell", "12.0": "blackwell", "12.1": "blackwell"}  # fmt: skip


# x86 and Arm. oneDNN dispatches by AVX2, AVX-512 and AMX; PyTorch's ATen by AVX2 and AVX-512 (or SVE); vLLM's own
# kernels ask for AVX-512, its BF16 and VNNI parts, and AMX.
_CHOOSE = ("avx2", "avx512", "avx_vnni", "avx_ne", "avx10", "amx", "sve", "sme")
_CHOOSE_TOO = ("fma", "f16c", "asimd", "asimddp", "asimdhp", "bf16", "i8mm")


@functools.cache
def detect() -> Hardware:
    """The accelerators that nvidia-smi lists, or the CPU. A GPU older than Ampere counts as none."""
    memory = psutil.virtual_memory().total
    cores = len(psutil.Process().cpu_affinity() or []) or 1
    gpus = [gpu for gpu in _gpus() if gpu[1] in _ARCHITECTURES]
    if gpus:
        name, capability, mebibytes = gpus[0]
        return Hardware(
            target=_ARCHITECTURES[capability],
            name=name,
            cores=cores,
            memory_bytes=memory,
            accelerators=len(gpus),
            accelerator_memory_bytes=int(mebibytes) * 2**20,
        )
    return Hardware(target="cpu", name=_cpu_name(), cores=cores, memory_bytes=memory)


def has_avx512() -> bool:
    """Whether the CPU has AVX-512, or isn't an x86 at all."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    found = cpu_flags()
    return not found or "avx512f" in found


def instructions() -> tuple[str, ...]:
    """The instruction sets of this CPU by which PyTorch, oneDNN and vLLM choose a kernel, sorted."""
    return tuple(sorted(flag for flag in cpu_flags() if flag.startswith(_CHOOSE) or flag in _CHOOSE_TOO))


@functools.cache
def cpu_flags() -> frozenset[str]:
    """What /proc/cpuinfo says that this CPU can; nothing where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(
        next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "").split()
    )


def free_accelerator_bytes() -> int:
    """Free memory of the accelerator that has least, now; 0 where there is none."""
    if shutil.which("nvidia-smi") is None:
        return 0
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        printed = process.ask(query, timeout=20, inherit=[COMPUTE])
        return min((int(line) * 2**20 for line in printed.split()), default=0)
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0


def _gpus() -> list[tuple[str, str, str]]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    try:
        printed = process.ask(query, timeout=20, inherit=[COMPUTE])
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [tuple(field.strip() for field in line.split(",")) for line in printed.splitlines()]
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3]


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
