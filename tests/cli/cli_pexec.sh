#!/bin/sh
# cli_pexec.sh BIN: what pexec answers to right and wrong command lines.
set -u
PATH=$1:$PATH
. tests/cli/expect.sh

expect 0 '' pexec
says '*pexec help*'
expect 0 '' pexec --version
says 'pexec [0-9]*'
for verb in train check bench devices; do
    expect 0 '' pexec "$verb" --help
    says "Usage: pexec $verb*Example:*pexec *Exit codes:*"
done
expect 2 'pexec: *did you mean train?' pexec trian
expect 0 '' pexec devices

run="--schedule 1f1b --pp 2 --microbatches 4 --model tiny-gpt2 --micro-batch 1 --seq-len 16"
printf 'To be, or not to be, that is the question. %.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 \
    18 19 20 21 22 23 24 25 26 27 28 29 30 >"$work/text.txt"
# shellcheck disable=SC2086
{
expect 0 '' pexec check $run --json
says '{*"loss":*"loss_reference":*"max_rel_err":*"pass":*true*}*'
expect 2 'pexec: *no-such*' pexec train $run --steps 1 --data "$work/no-such.txt"
printf 'short' >"$work/short.txt"
expect 2 'pexec: *short.txt*' pexec train $run --steps 1 --data "$work/short.txt"
expect 2 'pexec: *' pexec train $run --steps 0 --data "$work/text.txt"
expect 2 'pexec: *did you mean*' pexec train $run --steps 1 --dta "$work/text.txt"
expect 0 '*' pexec train $run --steps 1 --data "$work/text.txt" --trace "$work/trace.json"
grep -q traceEvents "$work/trace.json" || complain "the trace is no trace"
# what is written last is refused first: no step is run
expect 3 'pexec: *no-folder*' pexec train $run --steps 1000000 --data "$work/text.txt" \
    --trace "$work/no-folder/trace.json"
expect 3 'pexec: *no-folder*' pexec train $run --steps 1000000 --data "$work/text.txt" \
    --out "$work/no-folder/weights.safetensors"
expect 3 'pexec: *no folder*' pexec train $run --steps 1000000 --data "$work/text.txt" \
    --out "$work/text.txt/weights.safetensors"
cp "$work/text.txt" "$work/text-before.txt"
expect 2 'pexec: --out *text.txt: --data names the same file*' pexec train $run --steps 1 \
    --data "$work/text.txt" --out "$work/text.txt"
cmp -s "$work/text.txt" "$work/text-before.txt" || complain "the text was written over"
expect 2 'pexec: --lr: -1 *' pexec train $run --steps 1 --data "$work/text.txt" --lr -1
expect 2 'pexec: --model is missing*' pexec bench --out "$work/samples.txt"
expect 2 'pexec: *no-checkpoint*' pexec train $run --steps 1 --data "$work/text.txt" \
    --resume "$work/no-checkpoint"
expect 0 '' pexec train $run --steps 2 --val-every 1 --quiet --json --data "$work/text.txt" \
    --out "$work/weights.safetensors"
says '{*"best_step_s":*}*'
[ -s "$work/weights.safetensors" ] || complain "no weights were written"
# a rate at which the weights leave every bound
expect 1 'pexec: step [0-9]*: the *microbatch *is not finite*rank*--lr*' pexec train $run \
    --steps 50 --warmup 0 --lr 1e38 --clip 0 --quiet --data "$work/text.txt" \
    --out "$work/spoilt.safetensors"
absent "$work/spoilt.safetensors"
for verb in train emulate; do
    expect 3 'pexec: *CUDA*' pexec $verb $run --steps 1 --data "$work/text.txt" --backend cuda
    expect 3 'pexec: *CUDA*' pexec $verb $run --steps 1 --data "$work/text.txt" --backend cuda \
        --dtype bf16
    expect 2 'pexec: --dtype bf16: *fp32*' pexec $verb $run --steps 1 --data "$work/text.txt" \
        --dtype bf16
done
expect 3 'pexec: *CUDA*' pexec check $run --backend cuda --dtype bf16
expect 2 'pexec: --dtype bf16: *fp32*' pexec check $run --dtype bf16
expect 3 'pexec: *CUDA*' pexec bench --model tiny-gpt2 --backend cuda
expect 2 'pexec: --dtype bf16: *fp32*' pexec bench --model tiny-gpt2 --dtype bf16
expect 2 'pexec: --dtype fp16: *' pexec bench --model tiny-gpt2 --backend cuda --dtype fp16
expect 2 'pexec: --offload-dir: *leave it out' pexec emulate $run --steps 1 \
    --data "$work/text.txt" --backend cuda --offload 1GiB --offload-dir "$work"
}
finish
