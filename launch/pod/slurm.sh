#!/usr/bin/env bash
# One process a host under Slurm (one a GPU: --ntasks-per-node=8 --gpus-per-task=1). Not yet run on a real cluster.
#
#   sbatch --nodes=4 launch/pod/slurm.sh --config=configs/grpo_mixed.py:3b --workdir=/shared/runs/a ...
#
# The same command goes on where the time ended.
# Submit from the repository, in the environment that it is installed in.
#SBATCH --job-name=vlaa_jax
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=%x-%j.log
set -euo pipefail

# The signal comes 120 s before the time is up, to the processes of the step. A process that dies takes the others along.
srun --kill-on-bad-exit=1 python launch/tpu_train.py "$@"
