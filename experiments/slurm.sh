#!/usr/bin/env bash
# A sweep on a SLURM cluster: its runs in waves, each wave a job array that begins when the one
# before has ended, then the table. In the environment and the folder in which launch.py runs:
#
#   bash experiments/slurm.sh --config experiments/table1.py:paper --config.data.root=SKULLBREAK
#
# Arguments are those of launch.py. SBATCH_ARGS says what a run asks for. Run it again after a
# failure or a time limit: what is done is not submitted, and what was begun goes on.
set -euo pipefail

if [ -n "${SKULLGEN_JOB:-}" ]; then  # a job that the lines below submitted
  exec python launch.py "$@" --sweep="${SLURM_ARRAY_TASK_ID:-all}"
fi
export SKULLGEN_JOB=1

: "${SBATCH_ARGS:=--gres=gpu:1 --cpus-per-task=16 --mem=64G --time=1-00:00:00}"
listed=$(python launch.py "$@" --sweep=list | awk '$1 ~ /^[0-9]+$/ && $NF != "done"')
after=()
for wave in $(awk '{print $2}' <<< "$listed" | sort -nu); do
  runs=$(awk -v wave="$wave" '$2 == wave {print $1}' <<< "$listed" | paste -sd, -)
  # shellcheck disable=SC2086  # SBATCH_ARGS are words
  job=$(sbatch --parsable $SBATCH_ARGS ${after[@]+"${after[@]}"} --array="$runs" "$0" "$@")
  echo "wave $wave: runs $runs, job $job"
  after=(--dependency="afterany:${job%%;*}")
done
# shellcheck disable=SC2086
job=$(sbatch --parsable $SBATCH_ARGS ${after[@]+"${after[@]}"} "$0" "$@")
echo "table, and what failed before: job $job"
