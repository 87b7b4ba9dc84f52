#!/bin/sh
# Trains on GPUs of a SLURM cluster, one process a GPU.
#
#   experiments/launch/slurm.sh [--dry_run] NODES GPUS_PER_NODE ARGUMENTS...
#
# To be called in this repository, on a file system that all nodes share.
# ARGUMENTS are those of experiments.pretrain. JAX finds the other processes by
# SLURM's variables. Two minutes before its time is up the job gets SIGTERM, saves
# and is queued again. SBATCH_* variables set the partition, account and time.
set -eu

least=3
. "$(dirname "$0")/common.sh"
nodes=$1 gpus=$2
shift 2

quoted=$(quote "$@")

# The batch shell hands the signal on, and queues the job again behind the run.
script="trap 'kill -TERM \$run; again=1' TERM
srun .venv/bin/python -m experiments.pretrain$quoted & run=\$!
wait \$run; status=\$?
[ -z \"\${again-}\" ] && exit \$status
wait \$run
scontrol requeue \$SLURM_JOB_ID"

launch sbatch --nodes="$nodes" --ntasks-per-node="$gpus" \
  --gpus-per-node="$gpus" --job-name=titans --signal=B:TERM@120 --requeue \
  --open-mode=append --wrap="$script"
