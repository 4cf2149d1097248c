#!/bin/bash
# Two machines of eight GPUs train one model. After llm_tokenize, from the project's root, which
# all machines see under the same path:  sbatch configs/slurm.sh configs/gpt2_small.yaml
#SBATCH --job-name=llm_train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1   # one torchrun for each machine, which starts a process for each GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120     # two minutes before the time is over: save and stop
set -euo pipefail

config=$1                     # a YAML file; what follows it are settings
shift
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun torchrun \
    --nnodes="$SLURM_NNODES" \
    --nproc-per-node="$SLURM_GPUS_ON_NODE" \
    --rdzv-backend=c10d \
    --rdzv-endpoint="$first:29500" \
    --rdzv-id="$SLURM_JOB_ID" \
    --max-restarts=3 \
    -m llm_course.cli train --config "$config" parallel.kind=fsdp --resume "$@"
