#!/bin/sh
# Trains on a GKE cluster of TPU slices, by xpk.
#
#   experiments/launch/gke.sh [--dry_run] CLUSTER ZONE TPU_TYPE NUM_SLICES IMAGE WORKLOAD ARGUMENTS...
#
# TPU_TYPE as xpk names it, such as v5p-128; IMAGE holds this repository, with the
# extras train and tpu installed, as its working directory; WORKLOAD names the
# run. ARGUMENTS are those of experiments.pretrain. A workload that is preempted
# is started again by GKE and goes on from its last checkpoint.
set -eu

least=7
. "$(dirname "$0")/common.sh"
cluster=$1 zone=$2 type=$3 slices=$4 image=$5 workload=$6
shift 6

quoted=$(quote "$@")

launch xpk workload create --cluster="$cluster" --zone="$zone" \
  --tpu-type="$type" --num-slices="$slices" --docker-image="$image" \
  --workload="$workload" --max-restarts=100 \
  --command="python3 -m experiments.pretrain$quoted"
