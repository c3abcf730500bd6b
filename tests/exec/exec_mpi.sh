#!/bin/sh
# exec_mpi.sh BIN: ranks as MPI processes give the numbers that ranks as threads give, bit for bit;
# what is wrong is said in one line, by one process.
set -u
PATH=$1:$PATH
. tests/exec/mpi_run.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0
complain() {
    echo "$*"
    bad=1
}
run="--model tiny-gpt2 --micro-batch 1 --seq-len 16"
printf 'To be, or not to be, that is the question: %.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 \
    18 19 20 21 22 23 24 25 26 27 28 29 30 >"$work/text.txt"

# same N PLAN...: three steps of check as threads and as processes say the same.
same() {
    n=$1
    shift
    # shellcheck disable=SC2086
    pexec check $run "$@" --wire threads >"$work/threads" 2>&1 || complain "threads $*: failed"
    # shellcheck disable=SC2086
    processes "$n" pexec check $run "$@" >"$work/mpi" 2>&1 || complain "mpi $*: failed"
    grep -v '^process' "$work/threads" >"$work/a"
    grep -v '^process' "$work/mpi" >"$work/b"
    diff "$work/a" "$work/b" || complain "$*: threads and processes differ"
}
same 4 --schedule 1f1b --pp 4 --microbatches 8
same 2 --schedule interleaved-1f1b --pp 2 --chunks 2 --microbatches 4 --model tiny-llama
same 4 --schedule 1f1b --pp 2 --dp 2 --microbatches 4 --mapping single
same 4 --schedule 1f1b --pp 1 --dp 4 --microbatches 2
same 4 --schedule vocab-2 --pp 4 --microbatches 8
same 4 --schedule fbd --pp 2 --microbatches 4
same 4 --schedule 1f1b --pp 2 --tp 2 --microbatches 4
same 4 --schedule fbd --pp 1 --tp 2 --microbatches 2 --model tiny-llama
same 4 --schedule 1f1b --pp 1 --tp 2 --dp 2 --microbatches 2 --zero1 --sequence-parallel
same 4 --schedule 1f1b --pp 1 --tp 4 --microbatches 2 --model tiny-llama
same 3 --schedule fbd --opt merge-forward=1 --pp 1 --tp 2 --microbatches 2
same 6 --schedule fbd --opt merge-forward=1 --opt topology=lagged --opt weights=all-step --pp 2 \
    --tp 2 --microbatches 4 --model tiny-llama
same 4 --schedule bitpipe --pp 4 --microbatches 8
same 4 --schedule vocab-2 --pp 4 --microbatches 8 --vocab-size 250
same 2 --schedule v-half-vocab --pp 2 --microbatches 4 --vocab-size 250 --model tiny-llama
same 4 --schedule bitpipe --pp 2 --dp 2 --microbatches 4 --zero1 --model tiny-bert
same 4 --schedule zb-h2 --pp 4 --microbatches 8 --post-validation --clip 0.01

# curve FILE: what a training leaves that does not depend on speed.
curve() { sed 's/, "tokens_per_s".*//' "$1"; }
train="train --schedule 1f1b --pp 4 --microbatches 4 --steps 12 --val-every 4 --quiet --json --data $work/text.txt"
# shellcheck disable=SC2086
{
pexec $train $run --wire threads >"$work/threads.json" || complain "train with threads failed"
processes 4 pexec $train $run --trace "$work/trace.json" >"$work/mpi.json" ||
    complain "train with processes failed"
}
[ "$(wc -l <"$work/mpi.json")" -eq 1 ] || complain "not one process speaks"
curve "$work/threads.json" >"$work/a"
curve "$work/mpi.json" >"$work/b"
diff "$work/a" "$work/b" || complain "threads and processes learn differently"
grep -q traceEvents "$work/trace.json" || complain "no trace"
shards="$train $run --schedule 1f1b --pp 2 --tp 2"
# shellcheck disable=SC2086
{
pexec $shards --wire threads >"$work/threads.json" || complain "train of shards with threads failed"
processes 4 pexec $shards >"$work/mpi.json" || complain "train of shards with processes failed"
}
curve "$work/threads.json" >"$work/a"
curve "$work/mpi.json" >"$work/b"
diff "$work/a" "$work/b" || complain "shards as threads and as processes learn differently"

# later ARGS...: steps that overlap, between processes, leave the weights of those that wait.
later() {
    rm -f "$work/plain.w" "$work/late.w"
    late="train --steps 12 --val-every 7 --quiet --json --clip 0.9 --data $work/text.txt $run $*"
    # shellcheck disable=SC2086
    {
    pexec $late --wire threads --out "$work/plain.w" >"$work/threads.json" ||
        complain "$*: threads failed"
    processes 4 pexec $late --post-validation --out "$work/late.w" >"$work/mpi.json" ||
        complain "$*: processes with post-validation failed"
    }
    cmp "$work/plain.w" "$work/late.w" || complain "$*: the weights differ"
    curve "$work/threads.json" >"$work/a"
    curve "$work/mpi.json" >"$work/b"
    diff "$work/a" "$work/b" || complain "$*: steps that overlap learn differently"
}
later --schedule zb-h2 --pp 4 --microbatches 8
later --schedule zb-v --pp 2 --dp 2 --microbatches 4

# refuse PATTERN COMMAND...: fails, and exactly one line of pexec's says why.
refuse() {
    pattern=$1
    shift
    "$@" >"$work/out" 2>&1 && complain "$*: it did not fail"
    grep '^pexec:' "$work/out" >"$work/lines"
    [ "$(wc -l <"$work/lines")" -eq 1 ] || complain "$*: not one line"
    grep -q "$pattern" "$work/lines" || { complain "$*: not '$pattern'"; cat "$work/out"; }
}
check="pexec check --schedule 1f1b --pp 4 --microbatches 8 $run"
# shellcheck disable=SC2086
{
refuse '3 processes were started, but the plan has 4 ranks' processes 3 $check
refuse 'rank 2: version and command line: not the same as on rank 0' \
    processes 2 $check : -n 1 $check --seed 9 : -n 1 $check
refuse 'no-such.txt' processes 4 pexec $train $run --data "$work/no-such.txt"
refuse 'step [0-9]*: .* is not finite (rank' processes 4 pexec $train $run --steps 50 --warmup 0 \
    --lr 1e38 --clip 0
refuse 'no launcher is seen' $check --wire mpi
# a rank that never comes to the start of MPI
# shellcheck disable=SC2016
processes 2 sh -c '[ "$OMPI_COMM_WORLD_RANK" = 0 ] || sleep 20; exec "$@"' sh $check --timeout 2 \
    >"$work/out" 2>&1 && complain "a rank that does not come was not missed"
grep -q '^pexec: rank 0 has waited 2 s for MPI to start' "$work/out" ||
    { complain "a rank that does not come"; cat "$work/out"; }
}
exit $bad
