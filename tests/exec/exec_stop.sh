#!/bin/sh
# exec_stop.sh BIN: a rank that stands still ends the run at the deadline; the report names the rank
# that did not come, and says which task of each stream was waiting.
set -u
PATH=$1:$PATH
. tests/exec/mpi_run.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0
printf 'To be, or not to be, that is the question: %.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 \
    18 19 20 21 22 23 24 25 26 27 28 29 30 >"$work/text.txt"
# shellcheck disable=SC2016
processes 4 sh -c 'echo $$ >"'"$work"'/pid.$OMPI_COMM_WORLD_RANK"; exec pexec "$@"' sh train \
    --schedule 1f1b --pp 4 --microbatches 8 --model tiny-gpt2 --micro-batch 1 --seq-len 16 \
    --data "$work/text.txt" --steps 1000000 --val-every 20 --val-batches 1 --timeout 2 \
    >"$work/out" 2>&1 &
job=$!
# under way: what stops before is a start that takes too long
while kill -0 "$job" 2>/dev/null && ! grep -q '^step ' "$work/out"; do sleep 0.1; done
kill -STOP "$(cat "$work/pid.2")"
waited=0
while kill -0 "$job" 2>/dev/null && [ "$waited" -lt 150 ]; do
    sleep 0.1
    waited=$((waited + 1))
done
if kill -0 "$job" 2>/dev/null; then
    echo "the run hangs"
    kill -9 "$job"
    bad=1
fi
wait "$job" && { echo "exit code 0"; bad=1; }
grep -q 'pexec: .*waited 2 s' "$work/out" || { echo "no reason is given"; bad=1; }
grep -q 'rank 2' "$work/out" || { echo "rank 2 is not named"; bad=1; }
grep -q 'rank [013], step [0-9]*, ' "$work/out" || { echo "no rank says where it stands"; bad=1; }
grep -q 'bytes from rank 2: ' "$work/out" || { echo "no task of a peer's is shown"; bad=1; }
[ "$bad" -eq 0 ] || cat "$work/out"
exit $bad
