#!/bin/bash
# deploy/slurm.sh under a real Slurm, on this machine, in a folder of its own; as root, and no part of `make test`:
#     apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
#     bash tests/slurm.sh
# A first job is told to end (scancel --signal=TERM --batch, as a time limit does), commits, and queues itself again; then it
# goes on to the end. Exits with 0 if it does.
set -eu
cd "$(dirname "$0")/.."
WORK=$(mktemp -d /tmp/slurm-XXXXXX)
export SLURM_CONF=$WORK/slurm.conf
HOST=$(hostname -s)
mkdir "$WORK/state" "$WORK/spool" "$WORK/out"
dd if=/dev/urandom of="$WORK/key" bs=128 count=1 status=none
chmod 600 "$WORK/key"
cat > "$SLURM_CONF" << CONF
ClusterName=trial
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$WORK/munge.sock
SlurmctldPort=26817
SlurmdPort=26818
StateSaveLocation=$WORK/state
SlurmdSpoolDir=$WORK/spool
SlurmctldPidFile=$WORK/slurmctld.pid
SlurmdPidFile=$WORK/slurmd.pid
SlurmctldLogFile=$WORK/slurmctld.log
SlurmdLogFile=$WORK/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
PropagatePrioProcess=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SchedulerParameters=requeue_delay=0
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
CONF
munged --foreground --force --key-file="$WORK/key" --socket="$WORK/munge.sock" --pid-file="$WORK/munge.pid" \
    --log-file="$WORK/munge.log" --seed-file="$WORK/munge.seed" > "$WORK/munged.out" 2>&1 & MUNGE=$!
until [ -S "$WORK/munge.sock" ]; do sleep 0.2; done
slurmctld -D > "$WORK/slurmctld.out" 2>&1 & CONTROL=$!
slurmd -D -N "$HOST" > "$WORK/slurmd.out" 2>&1 & NODE=$!
trap 'scancel "$JOB" 2> /dev/null || true; sleep 2; kill $NODE $CONTROL $MUNGE 2> /dev/null || true' EXIT
export RAY_raylet_start_wait_time_s=200 RAY_agent_register_timeout_ms=200000   # for a busy machine
JOB=
until [ "$(sinfo -h -o %T)" = idle ]; do sleep 1; done

JOB=$(sbatch --parsable --nodes=1 --cpus-per-task="$(nproc)" --gpus-per-node=0 --time=30 --output="$WORK/out/%j" --open-mode=append \
    deploy/slurm.sh configs/pico.yaml --limit 100 --set "cache=$WORK/cache" --set "runs=$WORK/runs" --set student.labelled=20 \
    --set student.steps=3 --set student.log_every=1)
state() { scontrol show job "$JOB" | grep -o "$1=[^ ]*" | head -1 | cut -d= -f2; }
until ls "$WORK"/cache/tables/*/commits/* > /dev/null 2>&1; do
    sleep 1
    case $(state JobState) in FAILED | CANCELLED | COMPLETED) cat "$WORK"/out/*; exit 1 ;; esac
done
echo "the first cells are committed; the job is told to end"
scancel --signal=TERM --batch "$JOB"
until [ "$(state Restarts)" = 1 ]; do
    sleep 1
    case $(state JobState) in FAILED | CANCELLED | COMPLETED) cat "$WORK"/out/*; exit 1 ;; esac
done
echo "it has queued itself again"
until [ "$(state JobState)" = COMPLETED ]; do
    sleep 1
    case $(state JobState) in FAILED | CANCELLED) cat "$WORK"/out/*; exit 1 ;; esac
done
ls "$WORK"/runs/pico/*/report.html
echo "Slurm $(slurmd -V | cut -d' ' -f2): stopped once, went on, and trained"
