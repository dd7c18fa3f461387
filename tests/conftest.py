"""What scenarios and end-to-end tests share: engine environments that are made once and kept."""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from platformdirs import user_cache_path

# A shared machine is slow at times, and no test is about speed. CI says yes or no to a change, so it tries the same
# examples each time; new ones are tried wherever people work.
settings.register_profile("shared", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("shared")


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several test processes its own processors, so that their servers don't wait for each other."""
    # Threads of OpenMP that spin while others have the processor take a hundred times as long on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # qpack is started hundreds of times: it keeps its bytecode, as it does wherever this isn't set.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    # A shell's background job ignores SIGINT, and so would everything that the tests start and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        mine = sorted(os.sched_getaffinity(0))[int(worker["workerid"].removeprefix("gw")) :: worker["workercount"]]
        if mine:
            os.sched_setaffinity(0, mine)


@pytest.fixture(scope="session")
def engine_home() -> Path:
    """A QPACK_HOME whose `envs` outlive the test run, so that the next one installs nothing.

    qpack itself makes the environments in it, when the first test needs them. A test that wants a store of its own
    links `envs` into its own home. QPACK_TEST_HOME names another folder than the user's cache.
    """
    given = os.environ.get("QPACK_TEST_HOME")
    home = Path(given).expanduser().absolute() if given else user_cache_path("qpack-tests") / "home"
    (home / "envs").mkdir(parents=True, exist_ok=True)
    return home


@pytest.fixture
def chance() -> random.Random:
    """Other draws each time, for moments to kill something at. A test that fails shows its QPACK_TEST_SEED, which draws
    the same ones again.
    """
    seed = int(os.environ.get("QPACK_TEST_SEED") or random.SystemRandom().randrange(10**9))
    print(f"QPACK_TEST_SEED={seed}")
    return random.Random(seed)
