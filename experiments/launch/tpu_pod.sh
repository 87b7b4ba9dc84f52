#!/bin/sh
# Trains on every host of a TPU slice that exists, over gcloud's ssh.
#
#   experiments/launch/tpu_pod.sh [--dry_run] NAME ZONE DIRECTORY ARGUMENTS...
#
# NAME and ZONE are those of the slice (gcloud compute tpus tpu-vm create), whose
# hosts hold this repository, with its environment, in DIRECTORY. ARGUMENTS are
# those of experiments.pretrain; the same ones again go on with a run. JAX finds
# the other hosts by itself.
set -eu

least=4
. "$(dirname "$0")/common.sh"
name=$1 zone=$2 directory=$3
shift 3

quoted=$(quote "$directory" "$@")
# (The first word is the directory.)
command="set -- $quoted; cd \"\$1\"; shift; exec .venv/bin/python -m experiments.pretrain \"\$@\""

launch gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="$command"
