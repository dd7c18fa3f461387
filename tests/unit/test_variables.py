"""What a process gets of qpack's variables, and that every process gets it that way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.comparison import comparison_keys
from qpack.pipeline.plan import SPECS
from qpack.runtime import variables
from qpack.runtime.variables import (
    BASIC,
    CLUSTER,
    COMPUTE,
    HUB,
    INSTALL,
    NETWORK,
    PUBLIC_HUB,
    RAY_LOGIN,
    SERVE,
    SIGN,
    inherited,
    is_secret,
)
from tests.unit.evidence_samples import evidence
from tests.unit.test_structure import MODULES, sources, tree_of

GROUPS = {
    "basic": BASIC,
    "compute": COMPUTE,
    "network": NETWORK,
    "hub": HUB,
    "public-hub": PUBLIC_HUB,
    "install": INSTALL,
    "serve": SERVE,
    "sign": SIGN,
    "cluster": CLUSTER,
    "ray-login": RAY_LOGIN,
}
# How a process can be started from Python.
STARTS = {
    *("subprocess.Popen", "subprocess.run", "subprocess.call", "subprocess.check_call", "subprocess.check_output"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "os.system", "os.popen", "os.posix_spawn", "os.fork"),
    *("os.posix_spawnp", "os.startfile", "pty.spawn", "pty.fork", "asyncio.create_subprocess_exec"),
    *("asyncio.create_subprocess_shell", "psutil.Popen", "multiprocessing.Process", "multiprocessing.Pool"),
    *("concurrent.futures.ProcessPoolExecutor", "ProcessPoolExecutor"),
}
# `start` and `ask`, what they run everything below, jobs that Ray runs on another machine, and a load generator's own
# command, run in its environment by a worker there.
# The sandbox's child gets no variable at all.
WHERE = {
    "qpack.runtime.process": 2,
    "qpack.runtime.supervisor": 1,
    "evals.workers.ray_jobs_worker": 1,
    "evals.workers.load_tool_worker": 1,
    "evals.tasks.sandbox": 1,
}
SECRETS = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GITHUB_TOKEN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"),
    *("QPACK_OCI_PASSWORD", "DOCKER_AUTH_CONFIG", "CI_JOB_TOKEN", "DATABASE_URL", "SSH_AUTH_SOCK", "KUBECONFIG"),
    *("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONUSERBASE", "VIRTUAL_ENV", "WANDB_API_KEY"),
)


def started(tree: ast.AST) -> list[str]:
    """Calls that start a process, also by a name that was imported from its module."""
    by_name = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            by_name |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            by_name |= {alias.asname: alias.name for alias in node.names if alias.asname}
    calls = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            head, dot, rest = ast.unparse(node.func).partition(".")
            called = by_name.get(head, head) + dot + rest
            if called in STARTS or called.startswith(("os.exec", "os.spawn")):
                calls.append(called)
    return calls


def test_every_process_is_started_by_one_module() -> None:
    found = {name: started(tree_of(MODULES[name])) for name in MODULES}
    assert {name: len(calls) for name, calls in found.items() if calls} == WHERE
    assert len(sources()) > 200


@pytest.mark.parametrize(
    "text",
    [
        "import subprocess as sp\nsp.run(['x'])",
        "from subprocess import Popen as P\nP(['x'])",
        "import os\nos.execvp('x', [])",
        "from os import system\nsystem('x')",
    ],
)
def test_a_start_by_another_name_is_seen(text: str) -> None:
    assert started(ast.parse(text))


def test_a_start_of_an_interpreter_is_isolated() -> None:
    """Every command line that begins with an interpreter is made by `isolated`, or says -I or -P itself."""
    bare = []
    for name, path in MODULES.items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.List | ast.Tuple) and node.elts:
                first = ast.unparse(node.elts[0])
                if first in ("sys.executable", "str(python)", "str(environment.python)", "str(command.python)"):
                    flags = {ast.unparse(element) for element in node.elts[1:2]}
                    if not flags & {"'-I'", "'-P'"} and name != "qpack.runtime.process":
                        bare.append(f"{name}:{node.lineno}: {first}")
    assert bare == []


@pytest.mark.parametrize("name", GROUPS)
def test_no_group_lets_a_secret_through_that_it_does_not_spell_out(name: str) -> None:
    environ = dict.fromkeys((*SECRETS, "VLLM_API_KEY", "HF_TOKEN", "QPACK_KEY_PASSWORD", "UV_INDEX_X_PASSWORD"), "x")
    spelled = {"hub": {"HF_TOKEN"}, "cluster": {"HF_TOKEN"}, "serve": {"VLLM_API_KEY"},
               "sign": {"QPACK_KEY_PASSWORD"}, "install": {"UV_INDEX_X_PASSWORD"}}  # fmt: skip
    assert set(inherited(environ, GROUPS[name])) == spelled.get(name, set())


def test_no_engine_and_no_server_gets_a_secret_by_itself() -> None:
    environ = dict.fromkeys((*SECRETS, "VLLM_API_KEY", "HF_TOKEN", "QPACK_KEY_PASSWORD", "SIGSTORE_ID_TOKEN"), "x")
    assert {name: set(inherited(environ, BASIC, COMPUTE, *spec.inherits)) for name, spec in SPECS.items()} == {
        **{name: set() for name in SPECS},
        "canary": {"VLLM_API_KEY"},
        "model-signing": {"QPACK_KEY_PASSWORD", "SIGSTORE_ID_TOKEN"},
        "ray": {"HF_TOKEN"},
    }


def test_the_token_of_a_ray_cluster_reaches_what_submits_jobs_and_is_sent_to_no_job() -> None:
    environ = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x", "RAY_AUTH_TOKEN_PATH": "/x", "RAY_TMPDIR": "/y"}
    assert inherited(environ, *SPECS["ray"].inherits) == environ
    assert set(inherited(environ, CLUSTER)) == {"RAY_TMPDIR"}


@given(
    prefix=st.sampled_from(["VLLM_", "HF_", "UV_", "PIP_", "CUDA_", "OMP_", "TORCH_", "RAY_", "QPACK_ENV_", "LC_"]),
    word=st.from_regex(r"[A-Z]{0,6}", fullmatch=True),
    secret=st.sampled_from(["API_KEY", "TOKEN", "PASSWORD", "SECRET", "AUTH", "CREDENTIALS", "SECRET_KEY", "LOGIN"]),
)
def test_a_pattern_never_stands_for_a_secret(prefix: str, word: str, secret: str) -> None:
    name = f"{prefix}{word}_{secret}" if word else f"{prefix}{secret}"
    named = {n for group in GROUPS.values() for rule in group for n in rule.names}
    assert is_secret(name)
    if name not in named and not name.startswith(("UV_INDEX_", "BUILDKITE_")):
        assert inherited({name: "x"}, *GROUPS.values()) == {}


def test_what_shapes_a_measurement_is_recorded_and_nothing_else() -> None:
    environ = {
        "OMP_NUM_THREADS": "4",
        "VLLM_USE_V1": "1",
        "LD_PRELOAD": "libtcmalloc.so",
        "NCCL_DEBUG": "INFO",
        "VLLM_API_KEY": "s",
        "PATH": "/bin",
        "HOME": "/h",
        "HF_TOKEN": "s",
        "CUDA_VISIBLE_DEVICES": "1",
        "VLLM_CACHE_ROOT": "/c",
        "TORCHINDUCTOR_CACHE_DIR": "/c",
        "HTTP_PROXY": "http://u:p@proxy",
        "VLLM_MEDIA_URL": "https://user:hidden@host/x",
    }
    assert variables.server_variables(environ) == {
        "LD_PRELOAD": "libtcmalloc.so",
        "NCCL_DEBUG": "INFO",
        "OMP_NUM_THREADS": "4",
        "VLLM_MEDIA_URL": "https://[login]@host/x",
        "VLLM_USE_V1": "1",
    }


@given(st.dictionaries(st.from_regex(r"[A-Z][A-Z_]{1,20}", fullmatch=True), st.text(max_size=5), max_size=20))
def test_what_is_recorded_is_part_of_what_a_server_gets(environ: dict[str, str]) -> None:
    recorded = variables.server_variables(environ)
    assert set(recorded) <= set(inherited(environ, BASIC, COMPUTE))
    assert list(recorded) == sorted(recorded)
    assert variables.server_variables(recorded) == recorded


def test_speed_measured_with_other_variables_is_not_compared() -> None:
    one = evidence()
    other = one.model_copy(update={"variables": {"OMP_NUM_THREADS": "4"}})
    reasons = comparison_keys.reasons(comparison_keys.keys(one).machine, comparison_keys.keys(other).machine)
    assert reasons == ["variables: none and OMP_NUM_THREADS=4"]
    assert comparison_keys.keys(one).accuracy == comparison_keys.keys(other).accuracy


def test_every_rule_says_why() -> None:
    assert all(len(rule.why) > 5 and rule.names for group in GROUPS.values() for rule in group)


def test_the_documentation_names_every_group_of_variables() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "commands.md").read_text()
    for name in (
        "VLLM_API_KEY",
        "HF_TOKEN",
        "QPACK_KEY_PASSWORD",
        "SIGSTORE_ID_TOKEN",
        "OMP_*",
        "UV_*",
        "QPACK_ENV_NAME",
    ):
        assert f"`{name}`" in text


@pytest.mark.parametrize("name", ["NCCL_NVLS_ENABLE", "TORCH_SYMM_MEM_DISABLE_MULTICAST", "NVSHMEM_DISABLE_NVLS"])
def test_a_transport_that_the_machine_has_switched_off_stays_off_in_engines_and_servers(name: str) -> None:
    assert inherited({name: "0"}, BASIC, COMPUTE) == {name: "0"}
