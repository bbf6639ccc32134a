#!/bin/bash
# A sweep as one Slurm job: the job's first node runs Ray's head and the sweep's driver, and srun
# starts one Ray worker on every other node.
#
#   sbatch cluster/slurm.sh --space rmt --backbone ViT-B-16 --name mine --gpus-per-trial 0.25
#
# Edit the #SBATCH lines for your site, and PROJECT and STORAGE below. All nodes must mount both.
# When the time limit ends the job, submit the same line again: finished trials are kept, and
# interrupted ones continue from their checkpoint.
#
# State of this file: its commands are tested with srun and scontrol replaced by programs that start
# two "nodes" on one machine (tests/cluster/test_slurm.py). It has not been used on a Slurm cluster.
#
# Other users of the nodes reach Ray's ports, so Ray requires a token. It is made for this job and is
# passed in the environment, which only you and root can read.

#SBATCH --job-name=few-shot-search
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120

set -euo pipefail

PROJECT=${PROJECT:-$HOME/few-shot-search}  # this repository, with its environment in .venv
STORAGE=${STORAGE:-$PROJECT/sweeps}
port=${RAY_PORT:-$((20000 + SLURM_JOB_ID % 20000))}  # two jobs may share a node

log=$STORAGE/ray-$SLURM_JOB_ID.log  # of all nodes, which append to it

mkdir -p "$STORAGE"
cd "$PROJECT"
export PATH="${VENV:-$PROJECT/.venv}/bin:$PATH" RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
workers=$((SLURM_JOB_NUM_NODES - 1))
resources=(--num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}")
trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT  # srun ends its steps, and with them Ray

srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
  ray start --head --block --node-ip-address="$head" --port="$port" \
  --include-dashboard=false --disable-usage-stats "${resources[@]}" >>"$log" 2>&1 &
until ray status --address="$head:$port" >/dev/null 2>&1; do
  kill -0 $! 2>/dev/null || { cat "$log" >&2; exit 1; }
  sleep 2
done
if ((workers > 0)); then
  srun --nodes="$workers" --ntasks="$workers" --exclude="$head" --overlap \
    ray start --block --address="$head:$port" "${resources[@]}" >>"$log" 2>&1 &
fi

# Trials start on the head's node at once, and on the others as they join. Two minutes before the
# time limit Slurm signals this script alone: the driver stops the sweep while Ray still runs.
python -m search.run --address "$head:$port" --storage "$STORAGE" "$@" &
driver=$!
trap 'kill -TERM "$driver" 2>/dev/null' TERM
code=0
wait "$driver" || code=$?
while kill -0 "$driver" 2>/dev/null; do # the signal ended the wait
  code=0
  wait "$driver" || code=$?
done
exit "$code"
