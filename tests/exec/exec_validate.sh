#!/bin/sh
# exec_validate.sh BIN: trainings whose steps are validated later end with the weights of those that
# wait for their norms, bit for bit: in threads, emulated, and with a checkpoint on the way.
set -u
PATH=$1:$PATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0
complain() {
    echo "$*"
    bad=1
}
printf 'To be, or not to be, that is the question: %.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 \
    18 19 20 21 22 23 24 25 26 27 28 29 30 >"$work/text.txt"
run() {
    verb=$1
    shift
    pexec "$verb" --model tiny-gpt2 --micro-batch 1 --seq-len 16 --data "$work/text.txt" \
        --schedule zb-h2 --pp 4 --microbatches 8 --clip 0.9 --quiet --json "$@" \
        >"$work/out.json" || complain "$verb $*: failed"
}
loss() {
    sed 's/.*"validation_loss": \([^,]*\),.*/\1/' "$work/out.json"
}
run train --steps 8 --out "$work/plain.w"
want=$(loss)
run train --steps 8 --post-validation --val-every 3 --out "$work/late.w"
[ "$(loss)" = "$want" ] || complain "validation loss $(loss), not $want"
cmp -s "$work/plain.w" "$work/late.w" || complain "the weights differ"
run emulate --steps 8 --post-validation --out "$work/emulated.w"
cmp -s "$work/plain.w" "$work/emulated.w" || complain "the emulated weights differ"
run train --steps 8 --save "$work/whole" --save-every 3 --keep 0
run train --steps 8 --save "$work/late" --save-every 3 --keep 0 --post-validation
for n in 3 6 8; do
    cmp -s "$work/whole/step_000000000$n.safetensors" "$work/late/step_000000000$n.safetensors" ||
        complain "the checkpoints of step $n differ"
done
# a trace of two steps
run train --steps 8 --post-validation --periods 2 --trace "$work/two.json" --out "$work/late.w"
cmp -s "$work/plain.w" "$work/late.w" || complain "the weights of a run with a trace differ"
[ "$(grep -c '"name":"F 7"' "$work/two.json")" -eq 8 ] || complain "not each step has its F7"
pexec check --model tiny-gpt2 --schedule zb-v --pp 4 --microbatches 8 --post-validation \
    --clip 0.01 --json >"$work/out.json" || complain "check: failed"
grep -q '"steps_undone": 3,.*"pass": true' "$work/out.json" || complain "nothing was undone"
exit $bad
