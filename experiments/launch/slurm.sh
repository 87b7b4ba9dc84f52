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

dry_run=
if [ "${1-}" = --dry_run ]; then
  dry_run=1
  shift
fi
if [ $# -lt 3 ]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
nodes=$1 gpus=$2
shift 2

quoted=
for word in "$@"; do
  quoted="$quoted '$(printf %s "$word" | sed "s/'/'\\\\''/g")'"
done

# The batch shell hands the signal on, and queues the job again behind the run.
script="trap 'kill -TERM \$run; again=1' TERM
srun .venv/bin/python -m experiments.pretrain$quoted & run=\$!
wait \$run; status=\$?
[ -z \"\${again-}\" ] && exit \$status
wait \$run
scontrol requeue \$SLURM_JOB_ID"

set -- sbatch --nodes="$nodes" --ntasks-per-node="$gpus" \
  --gpus-per-node="$gpus" --job-name=titans --signal=B:TERM@120 --requeue \
  --open-mode=append --wrap="$script"
printf '%s\n' "$*"
[ -n "$dry_run" ] || exec "$@"
