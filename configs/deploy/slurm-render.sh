#!/usr/bin/env bash
# sbatch configs/deploy/slurm-render.sh GENERATOR OUT: bulk rendering by an array of 16 tasks on a shared filesystem.
# A task that is requeued makes what is missing of its part; whoever commits the last shard finishes the set.
#SBATCH --job-name=visynth-render
#SBATCH --array=0-15
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail
export OMP_WAIT_POLICY=PASSIVE
exec "${VISYNTH:-visynth}" render "$1" --out "$2" --per-class "${PER_CLASS:-10000}" \
  --shard-index "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))" --shard-count "$SLURM_ARRAY_TASK_COUNT" --quiet
