#!/bin/sh
# bench_pexec.sh BIN TEXT [ROUNDS [PYTHON]]: tokens/s of a GPT-2 124M training step (fp32, batch 1,
# 256 tokens) by pexec and by PyTorch, in turn, so that both meet the same machine. The best step
# counts. TORCH_BLAS may name the folder of an OpenMP build of OpenBLAS for PyTorch.
set -eu
PATH=$1:$PATH
text=$2 rounds=${3:-3} python=${4:-python3}
here=$(dirname "$0")

# one NAME TOKENS OPTION...
one() {
    name=$1 tokens=$2
    shift 2
    pexec train --model gpt2 --seq-len 256 --data "$text" --schedule 1f1b --val-every 0 \
        --val-batches 1 --quiet --json "$@" | sed 's/.*"best_step_s": \([0-9.]*\).*/\1/' |
        awk -v name="$name" -v n="$tokens" \
            '{ printf "%-28s best %7.3f s  %6.1f tokens/s\n", name, $1, n / $1 }'
}

torch() {
    printf '%-28s ' "torch, $1 threads, M=$2"
    OMP_NUM_THREADS=$1 OPENBLAS_NUM_THREADS=$1 MALLOC_TRIM_THRESHOLD_=4000000000 \
        MALLOC_MMAP_THRESHOLD_=4000000000 LD_LIBRARY_PATH="${TORCH_BLAS:-}" \
        "$python" "$here/bench_torch.py" "$3" 1 256 "$1" "$2" | tail -n 1
}

round=0
while [ "$round" -lt "$rounds" ]; do
    round=$((round + 1))
    one "pexec, 1 rank, 1 thread" 256 --pp 1 --microbatches 1 --steps 6
    torch 1 1 6
    one "pexec, 1 rank, 2 threads" 256 --pp 1 --microbatches 1 --threads-per-rank 2 --steps 8
    torch 2 1 8
    one "pexec, 1 rank, 2 threads, M=8" 2048 --pp 1 --microbatches 8 --threads-per-rank 2 --steps 2
    # the head costs as much as five layers and a half
    one "pexec, 2 ranks, M=8" 2048 --pp 2 --layers 9,3 --microbatches 8 --steps 2
    torch 2 8 2
done
