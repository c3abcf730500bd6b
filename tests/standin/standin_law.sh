#!/bin/sh
# standin_law.sh BIN_DIR PART: the law of the executor with CUDA's kernels, four ranks on one device
# that the host stands in for, each time under another order of its streams.
#   few         three schedules
#   schedules   every schedule of the registry in fp32
#   options     models, recomputation, replicas, shards, slices
#   runs        checkpoints, emulation
#   train       losses of a few steps, in fp32 and bf16, against those of the cores
set -u
bin=$1 part=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0 seed=${TD_STANDIN_SEED:-0}

# law SCHEDULE OPTION...: it holds. A refusal (exit 2) is one line, and fails where $refusals is no.
refusals=no
law() {
    schedule=$1
    shift
    seed=$((seed + 1))
    TD_STANDIN_SEED=$seed timeout 120 "$bin/pexec" check --backend cuda --schedule "$schedule" \
        --pp 4 --microbatches 8 --seq-len 16 --json "$@" >"$work/out" 2>"$work/err"
    code=$?
    if [ $code -eq 0 ]; then
        echo "ok   $schedule $* seed $seed $(grep -o '"max_rel_err": [^,]*' "$work/out" | head -n 1)"
    elif [ $code -eq 2 ] && [ $refusals = yes ] && [ "$(wc -l <"$work/err")" -eq 1 ]; then
        echo "none $schedule $*: $(cat "$work/err")"
    else
        echo "FAIL $schedule $* seed $seed (exit $code): $(tail -n 1 "$work/out") $(cat "$work/err")"
        bad=1
    fi
}

schedules() {
    names=$("$bin/psim" list |
        sed -n '/^schedules:/,/^[a-z]*:$/{s/^  \([a-z0-9][a-z0-9-]*\)  *[^ ].*/\1/p;}')
    [ "$(echo "$names" | wc -l)" -ge 20 ] || { echo "FAIL psim list names too few schedules"; bad=1; }
    for name in $names; do
        case $name in
        *-auto) law "$name" --model tiny-llama --times F=1,B=2,I=1,W=1,comm=0 ;;
        *) law "$name" --model tiny-llama ;;
        esac
    done
}

options() {
    for name in 1f1b dualpipe zb-h1; do
        law $name --model tiny-gpt2
        law $name --model tiny-bert
    done
    law 1f1b --model tiny-gpt2 --micro-batch 3 --seq-len 19
    law seq1f1b --model tiny-llama --slice-tokens 9,4,3
    law 1f1b --model tiny-gpt2 --recompute selective
    law 1f1b --model tiny-llama --recompute full
    law 1f1b --model tiny-gpt2 --pp 2 --dp 2
    law 1f1b --model tiny-gpt2 --clip 0.1
    law 1f1b --model tiny-llama --pp 2 --dp 2 --zero1
    law chimera --model tiny-gpt2 --zero1
    law 1f1b --model tiny-llama --pp 2 --tp 2
    law zb-h1 --model tiny-gpt2 --pp 2 --tp 2
    law 1f1b --model tiny-gpt2 --pp 2 --tp 2 --sequence-parallel
    law gpipe --model tiny-gpt2 --pp 1 --tp 2 --dp 2 --zero1 --microbatches 4
    law vocab-1 --model tiny-gpt2
    law 1f1b --model tiny-bert --dtype bf16
    law gpipe --model tiny-gpt2 --dtype bf16 --pp 2 --dp 2 --zero1
    law 1f1b --model tiny-llama --dtype bf16 --pp 2 --tp 2 --sequence-parallel
    law vocab-2 --model tiny-gpt2 --dtype bf16 --pp 2
    law seq1f1b --model tiny-llama --dtype bf16 --pp 2 --recompute full
    law fbd --model tiny-gpt2 --dtype bf16 --pp 2
    refusals=yes
    law zb-h2 --model tiny-llama --post-validation
}

# A run that was cut goes on to the same bits, from files that hold floats; an emulated one has the
# losses of one whose ranks are threads.
runs() {
    for what in "--schedule 1f1b --pp 2 --dtype bf16" \
        "--schedule gpipe --pp 1 --dp 2 --zero1 --dtype bf16" "--schedule 1f1b --pp 1 --tp 2"; do
        rm -rf "$work/whole" "$work/cut" "$work/on"
        mkdir "$work/cut"
        seed=$((seed + 1))
        short="--backend cuda --model tiny-gpt2 --microbatches 2 --micro-batch 1 --seq-len 8 --data
            README.md --steps 4 --val-every 0 --val-batches 1 --quiet --json $what"
        # shellcheck disable=SC2086
        TD_STANDIN_SEED=$seed "$bin/pexec" train $short --save "$work/whole" --save-every 2 \
            --keep 0 --out "$work/whole.w" >"$work/out" &&
            mv "$work/whole/step_0000000002.safetensors" "$work/cut" &&
            "$bin/pexec" train $short --resume "$work/cut" --save "$work/on" \
                --out "$work/on.w" >/dev/null &&
            cmp "$work/whole/step_0000000004.safetensors" "$work/on/step_0000000004.safetensors" &&
            cmp "$work/whole.w" "$work/on.w" &&
            "$bin/pexec" emulate $short >"$work/emulated" &&
            "$bin/pexec" emulate $short --offload 6MiB >"$work/offloaded"
        code=$?
        whole=$(sed -n 's/.*"loss": \([^,]*\),.*/\1/p' "$work/out")
        if [ $code -eq 0 ] && grep -q '"allocations_in_steps": 0}' "$work/out" &&
            grep -q "\"loss\": $whole," "$work/emulated" &&
            grep -q "\"loss\": $whole," "$work/offloaded"; then
            echo "ok   runs $what: $whole"
        else
            echo "FAIL runs $what: $whole, emulated $(cat "$work/emulated")"
            bad=1
        fi
    done
}

# loss BACKEND SCHEDULE OPTION...: of the third step.
loss() {
    backend=$1 schedule=$2
    shift 2
    echo run >>"$work/losses" # counted in a file, because this runs in a subshell
    TD_STANDIN_SEED=$((seed + $(wc -l <"$work/losses"))) timeout 120 "$bin/pexec" train --backend "$backend" --schedule "$schedule" \
        --pp 4 --microbatches 8 --seq-len 16 --data README.md --steps 3 --lr 0.01 --val-every 0 \
        --val-batches 1 --quiet --json "$@" >"$work/out" 2>"$work/err" ||
        echo "FAIL $backend $*: $(cat "$work/err")" >&2
    sed -n 's/.*"loss": \([^,]*\),.*/\1/p' "$work/out"
}

# near NAME A B LIMIT
near() {
    if awk -v a="$2" -v b="$3" -v limit="$4" \
        'BEGIN { d = a - b; if (d < 0) d = -d; exit !(a > 0 && b > 0 && d <= limit * b) }'; then
        echo "ok   $1: $2 and $3"
    else
        echo "FAIL $1: $2 and $3"
        bad=1
    fi
}

train() {
    for model in tiny-gpt2 tiny-llama; do
        cores=$(loss cpu 1f1b --model $model)
        near "$model in fp32" "$(loss cuda 1f1b --model $model)" "$cores" 1e-5
        near "$model in fp32, clipped" "$(loss cuda 1f1b --model $model --clip 0.1)" \
            "$(loss cpu 1f1b --model $model --clip 0.1)" 1e-5
        half=$(loss cuda 1f1b --model $model --dtype bf16)
        near "$model in bf16" "$half" "$cores" 2e-2
        for schedule in vocab-1 vocab-2; do
            near "$model by $schedule in bf16" "$(loss cuda $schedule --model $model --dtype bf16)" \
                "$cores" 2e-2
        done
        near "$model in bf16 again" "$(loss cuda 1f1b --model $model --dtype bf16)" "$half" 0
    done
}

case $part in
few)
    for name in 1f1b zb-h1 dualpipev; do law $name --model tiny-llama; done
    # what is put together on the cores is refused
    "$bin/pexec" check --backend cuda --schedule fbd --pp 2 --microbatches 2 --tp 2 --seq-len 16 \
        --opt merge-forward=1 --model tiny-gpt2 >"$work/out" 2>"$work/err"
    [ $? -eq 2 ] && grep -q 'shards of degree 2' "$work/err" || { cat "$work/err"; bad=1; }
    ;;
schedules | options | runs | train) $part ;;
*) echo "no part $part"; exit 1 ;;
esac
exit $bad
