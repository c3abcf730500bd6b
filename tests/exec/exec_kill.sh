#!/bin/sh
# exec_kill.sh BIN ROUNDS: a rank is killed at a random moment; the others end within ten seconds,
# and a message names the rank.
set -u
PATH=$1:$PATH
rounds=$2
. tests/exec/mpi_run.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0
printf 'To be, or not to be, that is the question: %.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 \
    18 19 20 21 22 23 24 25 26 27 28 29 30 >"$work/text.txt"

# anyone_left: whether the launcher or a rank is still there.
anyone_left() {
    kill -0 "$job" 2>/dev/null && return 0
    for pid in "$work"/pid.*; do
        kill -0 "$(cat "$pid")" 2>/dev/null && return 0
    done
    return 1
}

round=0
while [ "$round" -lt "$rounds" ]; do
    round=$((round + 1))
    n=4 plan='1f1b --pp 4'
    [ $((round % 3)) -eq 0 ] && n=3 plan='fbd --opt merge-forward=1 --pp 1 --tp 2'
    rank=$((round % n))
    rm -f "$work"/pid.* "$work/out"
    # each process says its number before it becomes pexec
    # shellcheck disable=SC2016,SC2086
    processes $n sh -c 'echo $$ >"'"$work"'/pid.$OMPI_COMM_WORLD_RANK"; exec pexec "$@"' sh train \
        --schedule $plan --microbatches 8 --model tiny-gpt2 --micro-batch 1 --seq-len 16 \
        --data "$work/text.txt" --steps 1000000 >"$work/out" 2>&1 &
    job=$!
    # not before the ranks have joined: a death in MPI_Init can leave OpenMPI's launcher itself hanging
    # when all ranks are dead
    waited=0
    while ! grep -q 'microbatches of' "$work/out" 2>/dev/null && [ "$waited" -lt 600 ]; do
        sleep 0.05
        waited=$((waited + 1))
    done
    sleep "0.$(printf '%03d' $(((round * 7919) % 800)))"
    kill -9 "$(cat "$work/pid.$rank")"
    waited=0
    while [ "$waited" -lt 100 ] && anyone_left; do
        sleep 0.1
        waited=$((waited + 1))
    done
    if kill -0 "$job" 2>/dev/null; then
        echo "round $round: rank $rank was killed, and the run hangs"
        for pid in "$work"/pid.*; do kill -9 "$(cat "$pid")" 2>/dev/null; done
        kill -9 "$job"
        bad=1
    fi
    wait "$job" && { echo "round $round: exit code 0"; bad=1; }
    grep -q "rank $rank\b" "$work/out" || {
        echo "round $round: no message names rank $rank:"
        cat "$work/out"
        bad=1
    }
    ! anyone_left || { echo "round $round: a process is left"; bad=1; }
done
exit $bad
