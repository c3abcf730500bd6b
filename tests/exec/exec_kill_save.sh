#!/bin/sh
# exec_kill_save.sh BIN ROUNDS: a training that writes a checkpoint every step is killed at a random
# moment, again and again; what it finds is always whole, and it goes on from there.
set -u
PATH=$1:$PATH
rounds=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0
printf 'To be, or not to be, that is the question: %.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 \
    18 19 20 21 22 23 24 25 26 27 28 29 30 >"$work/text.txt"
train() {
    exec pexec train --schedule 1f1b --pp 2 --microbatches 2 --model tiny-gpt2 --micro-batch 1 \
        --seq-len 16 --data "$work/text.txt" --quiet --val-batches 1 --save "$work/saved" \
        --save-every 1 --keep 2 "$@"
}
(train --steps 1 >/dev/null) || bad=1
step_now() { ls "$work/saved" | sed -n 's/^step_0*\([0-9]*\)\.safetensors$/\1/p' | sort -n | tail -n 1; }

round=0 began=$(step_now)
while [ "$round" -lt "$rounds" ]; do
    round=$((round + 1))
    train --steps 1000000 --resume "$work/saved" >"$work/out" 2>&1 &
    job=$!
    sleep "0.$(((round * 7919) % 200 + 50))"
    kill -9 "$job" 2>/dev/null || {
        echo "round $round: it ended by itself:"
        cat "$work/out"
        bad=1
    }
    wait "$job" 2>/dev/null
done
now=$(step_now)
[ "$now" -gt "$began" ] || { echo "no step was done"; bad=1; }
# the last whole one loads, and the run ends as one that was never killed
(train --steps $((now + 1)) --resume "$work/saved" >/dev/null) || bad=1
[ "$(step_now)" -eq $((now + 1)) ] || { echo "not at step $((now + 1))"; bad=1; }
[ -z "$(find "$work/saved" -name '*.tmp')" ] || { echo "half a file is left"; bad=1; }
[ "$(find "$work/saved" -name 'step_*' | wc -l)" -eq 2 ] || { echo "not two are kept"; bad=1; }
exit $bad
