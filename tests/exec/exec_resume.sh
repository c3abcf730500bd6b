#!/bin/sh
# exec_resume.sh BIN [processes]: a training that was cut and goes on equals the one that was not, bit
# for bit, also under another plan; bad checkpoints are refused in one line. With "processes" the
# first four ranks are processes of mpirun.
set -u
PATH=$1:$PATH
[ $# -lt 2 ] || . tests/exec/mpi_run.sh
four=${2:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0
complain() {
    echo "$*"
    bad=1
}
printf 'To be, or not to be, that is the question: %.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 \
    18 19 20 21 22 23 24 25 26 27 28 29 30 >"$work/text.txt"
plan="--schedule 1f1b --pp 4 --microbatches 8"
train() {
    pexec train --model tiny-gpt2 --micro-batch 1 --seq-len 16 --data "$work/text.txt" --steps 12 \
        --quiet --json "$@" || complain "train $*: failed"
}
train4() {
    if [ -z "$four" ]; then
        train "$@"
        return
    fi
    processes 4 pexec train --model tiny-gpt2 --micro-batch 1 --seq-len 16 --data "$work/text.txt" \
        --steps 12 --quiet --json "$@" || complain "processes: train $*: failed"
}
last=step_0000000012.safetensors

# whole and cut after step 4; every option of the optimizer
for options in "" "--clip 0" "--weight-decay 0" "--warmup 0 --lr 0.01"; do
    rm -rf "$work/whole" "$work/cut" "$work/on"
    # shellcheck disable=SC2086
    {
    train4 $plan $options --save "$work/whole" --save-every 4 --keep 0 --out "$work/whole.w" >/dev/null
    mkdir "$work/cut"
    mv "$work/whole/step_0000000004.safetensors" "$work/cut"
    train4 $plan $options --resume "$work/cut" --save "$work/on" --out "$work/on.w" >/dev/null
    }
    cmp "$work/whole/$last" "$work/on/$last" || complain "$options: another state after resuming"
    cmp "$work/whole.w" "$work/on.w" || complain "$options: other weights after resuming"
done

# from four ranks to other plans whose sums have the same order: not a bit of the file differs
for other in "--schedule 1f1b --pp 2" "--schedule gpipe --pp 1" \
    "--schedule interleaved-1f1b --pp 2 --chunks 2"; do
    rm -rf "$work/other"
    # shellcheck disable=SC2086
    train $other --microbatches 8 --warmup 0 --lr 0.01 --resume "$work/cut" --save "$work/other" \
        >/dev/null
    cmp "$work/whole/$last" "$work/other/$last" || complain "$other: another state"
done
# ... and back, and with moments that lie in pieces
replicas="--schedule 1f1b --pp 2 --dp 2 --microbatches 4"
for pieces in "" "--zero1"; do
    rm -rf "$work/whole" "$work/cut" "$work/on"
    # shellcheck disable=SC2086
    {
    train4 $replicas $pieces --save "$work/whole" --save-every 4 --keep 0 >/dev/null
    mkdir "$work/cut"
    mv "$work/whole/step_0000000004.safetensors" "$work/cut"
    train4 $replicas $pieces --resume "$work/cut" --save "$work/on" >/dev/null
    }
    cmp "$work/whole/$last" "$work/on/$last" || complain "replicas $pieces: another state"
done

# ... and with tensors that lie in shards: the same shards go on to the bit; others, and none, to
# within rounding
final_loss() { sed 's/.*"loss": \([0-9.]*\).*/\1/' "$1"; }
for shards in "--pp 2 --tp 2 --microbatches 4" "--pp 1 --tp 2 --dp 2 --zero1 --microbatches 2"; do
    rm -rf "$work/whole" "$work/cut" "$work/on"
    # shellcheck disable=SC2086
    {
    train4 --schedule 1f1b $shards --save "$work/whole" --save-every 4 --keep 0 >"$work/whole.json"
    mkdir "$work/cut"
    mv "$work/whole/step_0000000004.safetensors" "$work/cut"
    train4 --schedule 1f1b $shards --resume "$work/cut" --save "$work/on" >/dev/null
    }
    cmp "$work/whole/$last" "$work/on/$last" || complain "shards $shards: another state"
    for other in "--pp 2" "--pp 1 --tp 4" "--pp 1 --tp 2"; do
        # shellcheck disable=SC2086
        train --schedule 1f1b $other --microbatches 4 --resume "$work/cut" >"$work/other.json"
        awk -v a="$(final_loss "$work/whole.json")" -v b="$(final_loss "$work/other.json")" \
            'BEGIN { exit !(a > 1 && a - b < 1e-4 && b - a < 1e-4) }' ||
            complain "shards $shards on $other: another loss"
    done
done

# the newest ones stay
rm -rf "$work/few"
# shellcheck disable=SC2086
train4 $plan --save "$work/few" --save-every 3 --keep 2 >/dev/null
names=$(ls "$work/few")
[ "$names" = "step_0000000009.safetensors
$last" ] || complain "kept: $names"

# refuse CODE PATTERN ARGUMENTS...
refuse() {
    code=$1 pattern=$2
    shift 2
    # shellcheck disable=SC2086
    pexec train $plan --model tiny-gpt2 --micro-batch 1 --seq-len 16 --data "$work/text.txt" \
        --steps 20 --quiet "$@" >"$work/out" 2>&1
    got=$?
    [ "$got" -eq "$code" ] || complain "$*: exit code $got, not $code"
    [ "$(wc -l <"$work/out")" -eq 1 ] || complain "$*: not one line"
    grep -q -e "$pattern" "$work/out" || { complain "$*: not '$pattern'"; cat "$work/out"; }
}
whole=$work/few/$last
size=$(wc -c <"$whole")
for bytes in 0 7 100 5000 $((size / 2)) $((size - 1)); do
    head -c "$bytes" "$whole" >"$work/short.safetensors"
    refuse 2 'short.safetensors: ' --resume "$work/short.safetensors"
done
cp "$whole" "$work/flipped.safetensors"
printf 'x' | dd of="$work/flipped.safetensors" bs=1 seek=$((size / 2)) conv=notrunc 2>/dev/null
refuse 2 'flipped.safetensors: the data of tensor .* is not what was written' \
    --resume "$work/flipped.safetensors"
refuse 2 'tensor .* another model' --resume "$whole" --model tiny-llama
refuse 2 'no checkpoint (--save' --resume "$work/whole.w"
mkdir "$work/empty"
refuse 2 'empty: no checkpoint in it' --resume "$work/empty"
refuse 2 'no-such' --resume "$work/no-such"
refuse 2 '--seed 5: ' --resume "$whole" --seed 5
refuse 2 'ask for more' --resume "$whole" --steps 12
tr 'e' 'a' <"$work/text.txt" >"$work/other.txt"
refuse 2 'another text' --resume "$whole" --data "$work/other.txt"
refuse 2 '--save says' --save-every 5
printf '' >"$work/file"
refuse 3 'no folder' --save "$work/file"

# no room: the error says so, the checkpoints that are there stay, nothing half-written does
before=$(ls "$work/few" && cat "$work"/few/* | cksum)
(
    ulimit -f 1000
    refuse 3 'no room for its [0-9]* bytes' --resume "$whole" --save "$work/few"
    exit "$bad"
) || bad=1
[ "$(ls "$work/few" && cat "$work"/few/* | cksum)" = "$before" ] || complain "a full disk left traces"
exit $bad
