#!/bin/sh
# Written by qpack from the serving manifest of small-gptq:3, profile measured.
# sha256:abababababababababababababababababababababababababababababababab
# Use: docker-run.sh FOLDER, the folder model/ of a pulled release. Passed through if set: VLLM_API_KEY.
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
  --env DO_NOT_TRACK=1 \
  --env HF_HUB_OFFLINE=1 \
  --env HOME=/tmp \
  --env TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
  --env TRITON_CACHE_DIR=/tmp/triton \
  --env USER=vllm \
  --env VLLM_NO_USAGE_STATS=1 \
  --env XDG_CACHE_HOME=/tmp/cache \
  --env VLLM_API_KEY \
  --entrypoint vllm \
  --volume "$model":/models/small-gptq:ro \
  public.ecr.aws/q9t5s3a7/vllm-cpu-release-repo:v0.32.0 \
  serve /models/small-gptq \
  --served-model-name=small-gptq \
  --host=0.0.0.0 \
  --port=8000 \
  --dtype=bfloat16 \
  --max-model-len=2048 \
  --kv-cache-memory-bytes=536870912 \
  --enforce-eager \
  --max-num-seqs=16 \
  '--structured-outputs-config={"backend": "xgrammar"}'
