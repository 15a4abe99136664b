#!/usr/bin/env bash
# Starts, or resumes, a run on all hosts of a Cloud TPU VM slice. Not yet run on a real one.
#
#   gcloud compute tpus queued-resources create NAME --node-id=NAME --zone=ZONE --spot \
#     --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite
#   bash launch/pod/tpu_vm.sh NAME ZONE --config=configs/grpo_mixed.py:3b --workdir=/mnt/runs/a ...
#
# Runtime versions: v5e v2-alpha-tpuv5-lite, v5p v2-alpha-tpuv5, v6e v2-alpha-tpuv6e. Mount the shared folder first.
set -euo pipefail
cd "$(dirname "$0")/../.."

name=$1 zone=$2
shift 2
on_all=(gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all)

git archive --prefix=vlaa_jax/ --output=/tmp/vlaa_jax.tar.gz HEAD
gcloud compute tpus tpu-vm scp /tmp/vlaa_jax.tar.gz "$name": --zone="$zone" --worker=all
"${on_all[@]}" --command="tar -xzf vlaa_jax.tar.gz && python3 -m venv --upgrade-deps venv && venv/bin/pip install --quiet -e 'vlaa_jax[tpu]'"
# exec: a signal to the remote shell reaches the run.
"${on_all[@]}" --command="cd vlaa_jax && exec ../venv/bin/python launch/tpu_train.py $(printf '%q ' "$@")"
