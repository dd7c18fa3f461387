"""Whose memory an error was about, in the words of those who raise it; and that other errors aren't taken for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qpack.runtime import memory_limits

SAID = {
    # torch 2.13, c10/cuda/CUDACachingAllocator.cpp
    "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB": "gpu",
    "RuntimeError: CUDA error: out of memory": "gpu",
    "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": "gpu",
    # torch, c10/core/impl/alloc_cpu.cpp
    "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
    "to allocate 100663296 bytes. Error code 12 (Cannot allocate memory)": "host",
    "MemoryError: ": "host",
    "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 8.00 GiB for an array": "host",
    "OSError: [Errno 12] Cannot allocate memory": "host",
    "SafetensorError: Error while deserializing header: Cannot allocate memory (os error 12)": "host",
    "terminate called after throwing an instance of 'std::bad_alloc'": "host",
    "memory allocation of 1073741824 bytes failed": "host",
    "ValueError: 128 doesn't divide the 576 input channels": None,
    "RuntimeError: the model needs memory-efficient attention": None,
    "OSError: [Errno 28] No space left on device": None,
    "KeyError: 'out_of_memory'": None,
}


@pytest.mark.parametrize(("words", "place"), SAID.items())
def test_it_is_known_by_the_words_of_who_raises_it(words: str, place: str | None) -> None:
    assert memory_limits.ran_out([words]) == place
    assert memory_limits.ran_out(["RuntimeError: quantization failed", words]) == place


def test_a_count_of_kills_is_read_in_the_files_of_both_versions_of_cgroups(tmp_path: Path) -> None:
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    (tmp_path / "memory.events").write_text("low 0\noom 2\noom_kill 1\noom_group_kill 0\n")
    assert memory_limits._kills(tmp_path / "memory.oom_control") == 3
    assert memory_limits._kills(tmp_path / "memory.events") == 1
    assert memory_limits._kills(tmp_path / "nosuch") == 0


def test_a_limit_of_a_cgroup_is_read_and_none_is_none(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limits._cgroup_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("1048576\n")
    assert memory_limits._cgroup_limit(tmp_path) == 2**20
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_limits._cgroup_limit(tmp_path) is None


def test_a_process_may_never_take_more_than_the_machine_has() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < memory_limits.limit().bytes <= total


def test_a_kill_without_evidence_is_not_called_one_for_memory() -> None:
    watch = memory_limits.Watch(peak=2**20)
    assert watch.killed() == ""
    watch.peak = watch.limit.bytes
    assert "near its limit" in watch.killed()
