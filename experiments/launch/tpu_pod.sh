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

dry_run=
if [ "${1-}" = --dry_run ]; then
  dry_run=1
  shift
fi
if [ $# -lt 4 ]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
name=$1 zone=$2 directory=$3
shift 3

# Every word quoted for the shell of the hosts.
quoted=
for word in "$directory" "$@"; do
  quoted="$quoted '$(printf %s "$word" | sed "s/'/'\\\\''/g")'"
done
# (The first word is the directory.)
command="set -- $quoted; cd \"\$1\"; shift; exec .venv/bin/python -m experiments.pretrain \"\$@\""

set -- gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="$command"
printf '%s\n' "$*"
[ -n "$dry_run" ] || exec "$@"
