#!/bin/bash
# Fill the cache on the GPUs of several nodes, then train:
#     sbatch deploy/slurm.sh configs/hico-blip.yaml --set cache=s3://my-bucket/cache
# Submit it from the checkout. The environment says who you are in the object store (docs/cluster.md); sbatch passes it on.
# A job that meets its time limit commits what is computed, saves the training, and queues itself again.
#SBATCH --job-name=hoi-distill
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -u
CONFIG=${1:?usage: sbatch deploy/slurm.sh CONFIG [options of hoi-distill run]}
shift
. .venv/bin/activate

export HOI_DISTILL_DISK=${HOI_DISTILL_DISK:-${TMPDIR:-/tmp}/hoi-distill-$(id -un)}   # a fast local disk, not the home
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
PORT=$((20000 + SLURM_JOB_ID % 20000))
export RAY_ADDRESS
RAY_ADDRESS=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="${NODES[0]}" hostname -I | cut -d' ' -f1):$PORT
CPUS=${SLURM_CPUS_PER_TASK:-$(nproc)}
SCRATCH=$(mktemp -u -d /tmp/ray-XXXXXX)   # short: a socket's path has at most 107 bytes

start_node() {  # NODE OPTIONS...: a Ray node, until the job ends
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$1" env -u RAY_ADDRESS \
        ray start --block --num-cpus="$CPUS" --temp-dir="$SCRATCH" "${@:2}" > "ray-$SLURM_JOB_ID-$1.log" 2>&1 &
}
start_node "${NODES[0]}" --head --port="$PORT" --node-ip-address="${RAY_ADDRESS%:*}" --include-dashboard=false
HEAD=$!
for node in "${NODES[@]:1}"; do start_node "$node" --address="$RAY_ADDRESS"; done
until grep -qs "Ray runtime started" "ray-$SLURM_JOB_ID-${NODES[0]}.log"; do
    kill -0 $HEAD 2> /dev/null || { cat "ray-$SLURM_JOB_ID-${NODES[0]}.log"; exit 1; }
    sleep 2
done

run() {  # a command that is told of SIGTERM, which bash keeps to itself while it waits for one in the foreground
    "$@" & RUNNING=$!
    trap 'kill -TERM $RUNNING' TERM
    wait $RUNNING; STATUS=$?
    while kill -0 $RUNNING 2> /dev/null; do wait $RUNNING; STATUS=$?; done
    return $STATUS
}
run hoi-distill run "$CONFIG" "$@" && run hoi-distill train "$CONFIG" "$@"
STATUS=$?
[ $STATUS -eq 130 ] && scontrol requeue "$SLURM_JOB_ID"   # it was stopped; the same command goes on
exit $STATUS
