#!/bin/bash
# A training on four machines of eight GPUs: sbatch examples/slurm.sh configs/....yaml [OPTIONS]
#SBATCH --job-name=retinanet
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append

# One agent a machine, which starts a process for each GPU, and all of them anew after a failure.
# --resume: a job that was ended by its time or put back into the queue goes on.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node 8 --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$first:29500" --rdzv-id "$SLURM_JOB_ID" \
    train_net.py --resume --config-file "$@"
