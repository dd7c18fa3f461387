"""LeaderWorkerSet: one server over several nodes. The leader answers; workers compute for it.

https://lws.sigs.k8s.io/docs/reference/leaderworkerset.v1/, and vLLM's `--nnodes`:
https://docs.vllm.ai/en/stable/serving/parallelism_scaling/
"""

from __future__ import annotations

from qpack.core.errors import invalid_option
from registry.core.documents import Document
from registry.serving.exporters import kubernetes
from registry.serving.exporters.export import Export, Files, heading, name_of, to_yaml
from registry.serving.exporters.kubernetes import ORAS, Place

FILES = "`leaderworkerset.yaml`, for `--nodes` of at least two"
MODEL = "pulled by digest on every node, or an image volume"
NEEDS_REPOSITORY = True
IMAGES: tuple[str, ...] = (ORAS,)


def files(export: Export) -> Files:
    """`leaderworkerset.yaml`: ServiceAccount, LeaderWorkerSet, and a Service of the leader alone."""
    count, gpus = export.nodes, export.manifest.devices
    if count < 2 or gpus < count or gpus % count != 0:
        raise invalid_option(
            "--nodes",
            f"{gpus} GPUs can't be shared by {count} nodes of a LeaderWorkerSet",
            "Pass a number of nodes, two or more, that divides the GPUs of the profile.",
        )
    # The controller sets both variables; the kubelet expands them.
    together = (f"--nnodes={count}", "--master-addr=$(LWS_LEADER_ADDRESS)")
    leader = Place(gpus // count, (*together, "--node-rank=0"))
    worker = Place(gpus // count, (*together, "--node-rank=$(LWS_WORKER_INDEX)", "--headless"), serves=False)
    labels = {**kubernetes.labels(export), **_ROLE}
    workers: Document = {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": kubernetes.metadata(export),
        "spec": {
            "replicas": 1,
            "leaderWorkerTemplate": {
                "size": count,
                # A server without one of its nodes answers nothing.
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": {"metadata": {"labels": labels}, "spec": kubernetes.pod(export, leader)},
                "workerTemplate": {
                    "metadata": {"labels": kubernetes.labels(export)},
                    "spec": kubernetes.pod(export, worker),
                },
            },
        },
    }
    service = kubernetes.service(export, {**kubernetes.selector(export), **_ROLE})
    use = f"Needs LeaderWorkerSet in the cluster. {count} nodes serve {name_of(export)}, GPUs on each: {gpus // count}."
    return {"leaderworkerset.yaml": heading(export, use) + to_yaml(kubernetes.account(export), workers, service)}


_ROLE = {"role": "leader"}
