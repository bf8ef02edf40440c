#!/usr/bin/env bash
# A one-node Slurm on this machine, for the tests marked cluster. As root on Debian: tests/support/start_slurm.sh FOLDER; stop it with
# tests/support/start_slurm.sh FOLDER stop. Needs the packages slurm-wlm and munge.
set -euo pipefail
folder=$(realpath -m "$1")
if [ "${2:-start}" = stop ]; then
	for file in "$folder"/slurmd.pid "$folder"/slurmctld.pid; do
		[ -f "$file" ] && kill "$(cat "$file")" || true
	done
	[ -f "$folder/munged" ] && kill "$(cat /run/munge/munged.pid)" || true # only where it was started here
	exit 0
fi
mkdir -p "$folder/state" "$folder/spool" /run/munge /var/log/munge /var/lib/munge
chmod 755 "$folder" /run/munge
chown munge /run/munge /var/log/munge /var/lib/munge
[ -f /etc/munge/munge.key ] || { dd if=/dev/urandom bs=32 count=1 of=/etc/munge/munge.key status=none; chown munge /etc/munge/munge.key; chmod 400 /etc/munge/munge.key; }
munge -n >/dev/null 2>&1 || { runuser -u munge -- munged && touch "$folder/munged"; }
host=$(hostname -s)
# cred_expire: Slurm waits that long before it starts a requeued job again, two minutes by default
cat >"$folder/slurm.conf" <<CONF
ClusterName=longpress
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
ReturnToService=2
MpiDefault=none
SchedulerParameters=batch_sched_delay=0,sched_interval=1,requeue_delay=1
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=1000 State=UNKNOWN
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF="$folder/slurm.conf"
slurmctld
slurmd
for _ in $(seq 60); do
	[ "$(sinfo -h -o %t 2>/dev/null)" = idle ] && exit 0
	sleep 0.5
done
echo "Slurm did not start; see $folder/slurmctld.log and slurmd.log" >&2
exit 1
