"""Which environment variables a process gets. One that no list here names stays with qpack.

Engines, servers and tools run a great deal of code that isn't ours. Each gets what it needs by name, so a token for a
cloud or for a registry that happens to be set reaches none of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Allowed:
    """Variables that may be inherited. A `*` in a name never stands for a secret (see `is_secret`).

    `shapes` marks those that can change what is computed, or how fast: they belong to a measurement's evidence and key.
    """

    names: tuple[str, ...]
    why: str
    shapes: bool = False


Group = tuple[Allowed, ...]

BASIC: Group = (
    Allowed(("PATH",), "programs that a library runs: a compiler, nvidia-smi, numactl"),
    Allowed(("HOME", "USER", "LOGNAME"), "where caches and configuration are, and a name for temporary folders"),
    Allowed(("LANG", "LANGUAGE", "LC_*", "TZ"), "the encoding of text, and the clock in logs"),
    Allowed(("TMPDIR", "TMP", "TEMP"), "where temporary files fit"),
    Allowed(("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"), "the same, by their standard"),
    Allowed(("LD_LIBRARY_PATH",), "shared libraries that aren't in the system's folders: CUDA, a cluster's modules"),
    Allowed(("QPACK_TEST_MARK",), "how tests find every process that qpack started"),
)
"""For every process."""

COMPUTE: Group = (
    Allowed(("LD_PRELOAD", "MALLOC_*", "GLIBC_TUNABLES", "TCMALLOC_*"), "the allocator and OpenMP that serve", True),
    Allowed(("OMP_*", "GOMP_*", "KMP_*", "MKL_*", "OPENBLAS_*", "DNNL_*", "ONEDNN_*"), "threads and kernels", True),
    Allowed(("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"), "which GPUs; the key holds what they are"),
    Allowed(("CUDA_HOME", "CUDA_PATH", "CUDA_CACHE_*", "CUDA_MPS_*", "NVIDIA_*"), "where CUDA and its driver are"),
    Allowed(
        ("CUDA_*", "CUBLAS_*", "CUDNN_*", "NVTE_*", "NCCL_*", "NVSHMEM_*", "GLOO_*"),
        "kernels and transports of CUDA",
        True,
    ),
    Allowed(("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE"), "where kernels are kept"),
    Allowed(("TORCH_*", "PYTORCH_*", "TORCHINDUCTOR_*", "TRITON_*", "FLASHINFER_*"), "PyTorch and its compilers", True),
    Allowed(("VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT", "VLLM_LOGGING_*", "VLLM_LOG_*"), "where vLLM keeps and logs"),
    Allowed(("VLLM_*",), "vLLM's own settings", True),
    Allowed(("CC", "CXX"), "the compiler of kernels that are made while a model loads"),
    Allowed(("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ASSETS_CACHE"), "what was fetched before"),
)
"""For what runs a model: engines, servers, and the clients that tokenize for them."""

NETWORK: Group = (
    Allowed(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"), "the way out of this network"),
    Allowed(("http_proxy", "https_proxy", "all_proxy", "no_proxy"), "the same, as older programs read it"),
    Allowed(("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"), "whom to trust there"),
)
"""For what talks to other machines."""

HUB: Group = (
    Allowed(("HF_TOKEN", "HF_TOKEN_PATH"), "gated models and data sets"),
    Allowed(("HF_*",), "the hub's address, and how its client fetches"),
)
"""For what fetches from the hub."""

PUBLIC_HUB: Group = (Allowed(("HF_ENDPOINT", "HF_HUB_*", "HF_XET_*"), "the hub's address, and how its client fetches"),)
"""For what fetches from the hub in a stranger's name: no token."""

INSTALL: Group = (
    *NETWORK,
    Allowed(("UV_*", "PIP_*"), "package indexes, folders of wheels, the cache of packages"),
    Allowed(("UV_INDEX_*_USERNAME", "UV_INDEX_*_PASSWORD", "NETRC"), "the login of a package index"),
    Allowed(("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "MAX_JOBS", "CUDA_HOME"), "packages built from source"),
)
"""For uv and pip."""

SERVE: Group = (Allowed(("VLLM_API_KEY",), "the key that a served model asks of its clients"),)
"""For a server that is more than measured, and for the client that asks it."""

SIGN: Group = (
    *NETWORK,
    Allowed(("QPACK_KEY_PASSWORD",), "the password of the private key"),
    Allowed(("SIGSTORE_ID_TOKEN",), "an identity that CI gives in a variable"),
    Allowed(("GITHUB_ACTIONS", "ACTIONS_ID_TOKEN_REQUEST_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_URL"), "GitHub's identity"),
    Allowed(("GITLAB_CI", "CIRCLECI", "BUILDKITE", "BUILDKITE_AGENT_*"), "the identity of other CI systems"),
    Allowed(("BUILDKITE_AGENT_ACCESS_TOKEN", "CIRCLE_OIDC_TOKEN_V2", "GOOGLE_SERVICE_ACCOUNT_NAME"), "the same"),
)
"""For the library that signs and verifies."""

CLUSTER: Group = (
    *COMPUTE,
    *NETWORK,
    *HUB,
    Allowed(("UV_*", "PIP_*"), "a job makes the environments that its node lacks"),
    Allowed(("QPACK_HOME", "QPACK_REGISTRY", "QPACK_ENV_*"), "a job works in the same store, with the same engines"),
    Allowed(("RAY_*",), "Ray's own settings"),
)
"""For builds that a cluster runs: what decides what a build does, wherever it runs."""

RAY_LOGIN: Group = (Allowed(("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"), "the way into a Ray cluster"),)
"""For what submits jobs to a cluster; the jobs themselves don't get it."""

ALWAYS = {"PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1"}
"""Set for every process: interpreters that our processes start don't import from the current folder either."""

SHORT_SPIN = {"GOMP_SPINCOUNT": "1000"}
"""How long threads of a worker spin before they sleep, in turns of GNU's OpenMP: as long as it spins itself where it
knows that processors are fewer than threads. It doesn't know of other processes, and else spins 300,000 turns while a
thread has no processor: ten thousand small operations on two busy cores took 47 s, and 1.1 s so. Results are the same.
"""

_SECRET = re.compile(r"(?:^|_)(?:KEY|TOKEN|PASS|PASSW(OR)?D|SECRETS?|CREDENTIALS?|AUTH|LOGIN)(?:_|$)", re.IGNORECASE)
_LOGIN = re.compile(r"(://)[^\s/@]+@")


def is_secret(name: str) -> bool:
    """Whether a variable of this name holds what nobody else may see (`HF_TOKEN`, `AWS_SECRET_ACCESS_KEY`)."""
    return _SECRET.search(name) is not None


def inherited(environ: Mapping[str, str], *groups: Group) -> dict[str, str]:
    """The variables of `environ` that a process of these groups gets, sorted."""
    return {name: environ[name] for name in sorted(environ) if any(_rule(name, group) for group in groups)}


def thread_waiting(environ: Mapping[str, str]) -> dict[str, str]:
    """SHORT_SPIN, unless the user has set how threads wait."""
    return {} if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(environ) else SHORT_SPIN


def server_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """What a measured server gets from outside that can change its numbers or its speed; no secret, no place.

    Pure: the same of the same `environ`. This goes into the evidence, and into the key of everything measured.
    """
    shaping = {name: value for name, value in environ.items() if (rule := _rule(name, COMPUTE)) and rule.shapes}
    return {name: _LOGIN.sub(r"\1[login]@", shaping[name]) for name in sorted(shaping)}


def _rule(name: str, group: Group) -> Allowed | None:
    """The first rule that allows the variable: what is named in full comes before what a pattern covers."""
    for rule in group:
        if name in rule.names:
            return rule
    if is_secret(name):
        # A pattern in full knowledge of a secret spells it out: `UV_INDEX_*_PASSWORD`.
        return next((r for r in group if any(is_secret(p) and fnmatchcase(name, p) for p in r.names)), None)
    return next((r for r in group if any(fnmatchcase(name, p) for p in r.names)), None)
