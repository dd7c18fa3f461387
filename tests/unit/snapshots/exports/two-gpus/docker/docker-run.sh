#!/bin/sh
# Written by qpack from the serving manifest of small-gptq:3, profile two-gpus.
# sha256:abababababababababababababababababababababababababababababababab
# Use: docker-run.sh FOLDER, the folder model/ of a pulled release. Passed through if set: VLLM_API_KEY and HF_TOKEN.
set -eu
model=$(realpath "${1:?the model folder of the pulled release}")
exec docker run \
  --rm --init \
  --name small-gptq \
  --user 2000:2000 \
  --read-only --tmpfs /tmp:rw,exec,mode=1777 \
  --cap-drop ALL --security-opt no-new-privileges \
  --shm-size 4g \
  --publish 127.0.0.1:8000:8000 \
  --gpus 2 \
  --env DO_NOT_TRACK=1 \
  --env HF_HUB_OFFLINE=0 \
  --env HOME=/tmp \
  --env 'NCCL_DEBUG=WARN $HOME 100%' \
  --env TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
  --env TRITON_CACHE_DIR=/tmp/triton \
  --env USER=vllm \
  --env VLLM_NO_USAGE_STATS=1 \
  --env XDG_CACHE_HOME=/tmp/cache \
  --env VLLM_API_KEY \
  --env HF_TOKEN \
  --entrypoint vllm \
  --volume "$model":/models/small-gptq:ro \
  vllm/vllm-openai:v0.32.0 \
  serve /models/small-gptq \
  --served-model-name=small-gptq \
  --host=0.0.0.0 \
  --port=8000 \
  --dtype=bfloat16 \
  --max-model-len=2048 \
  --kv-cache-memory-bytes=17179869184 \
  --enable-auto-tool-choice \
  --no-enable-prefix-caching \
  --max-num-seqs=16 \
  '--speculative-config={"model": "example/draft", "num_speculative_tokens": 3, "revision": "1111111111111111111111111111111111111111"}' \
  '--structured-outputs-config={"backend": "xgrammar"}' \
  --tensor-parallel-size=2 \
  --tool-call-parser=hermes
