#!/bin/sh
# standin_nccl.sh BIN PART: processes with a GPU each, on the host that stands in for both GPUs and
# NCCL. Messages hold nothing and end late at random, so that an order that could hang does.
#   few        a schedule of each kind of collective
#   schedules  one of each family, on two and on four processes
#   options    mappings, replicas, sums in order, seeds
#   faults     a link that stalls, a process that is killed, what is refused
set -u
PATH=$1:$PATH
part=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0
complain() {
    echo "$*"
    bad=1
}
run="--model tiny-gpt2 --micro-batch 1 --seq-len 16 --timeout 60"
export TD_NCCL_DELAY_US=200

# law N OPTION...: the law of the executor holds, with N processes.
law() {
    n=$1
    shift
    # shellcheck disable=SC2086
    if pexec check $run --gpus "$n" "$@" >"$work/out" 2>&1; then
        echo "ok $n processes $* $(grep '^gradients' "$work/out")"
    else
        complain "$n processes $*: $(cat "$work/out")"
    fi
}

# same OPTION...: with sums in member order, three steps have the bits that threads give them.
same() {
    # shellcheck disable=SC2086
    pexec check $run --backend cuda "$@" >"$work/threads" 2>&1 || complain "threads $*: failed"
    # shellcheck disable=SC2086
    pexec check $run --gpus 4 --deterministic "$@" >"$work/out" 2>&1 ||
        complain "processes $*: $(cat "$work/out")"
    grep -Ev '^process|^device memory|share GPU' "$work/threads" >"$work/a"
    grep -Ev '^process|^device memory|share GPU' "$work/out" >"$work/b"
    diff "$work/a" "$work/b" || complain "$*: threads and processes differ"
}

# refused PATTERN COMMAND...: exit code 2, one line with the pattern.
refused() {
    pattern=$1
    shift
    "$@" >"$work/out" 2>&1
    code=$?
    [ $code -eq 2 ] || complain "$*: exit code $code"
    grep '^pexec:' "$work/out" | grep -v 'share GPU' >"$work/lines"
    [ "$(wc -l <"$work/lines")" -eq 1 ] || complain "$*: not one line: $(cat "$work/out")"
    grep -q -e "$pattern" "$work/lines" || complain "$*: not '$pattern': $(cat "$work/lines")"
}

case $part in
few)
    law 2 --schedule 1f1b --pp 2 --microbatches 4
    law 4 --schedule bitpipe --pp 4 --microbatches 4
    ;;
schedules)
    for n in 2 4; do
        law $n --schedule 1f1b --pp $n --microbatches 8
        law $n --schedule interleaved-1f1b --pp $n --chunks 2 --microbatches 8
        law $n --schedule zb-h1 --pp $n --microbatches 8
        law $n --schedule bitpipe --pp $n --microbatches 8
        law $n --schedule seq1f1b --pp $n --slices 2 --microbatches 4
        law $n --schedule vocab-2 --pp $n --microbatches 8
        law $n --schedule fbd --pp $((n / 2)) --microbatches 4
    done
    ;;
options)
    law 4 --schedule 1f1b --pp 4 --microbatches 8 --mapping direction
    law 4 --schedule bitpipe --pp 4 --microbatches 4 --mapping single
    law 4 --schedule 1f1b --pp 2 --dp 2 --microbatches 4 --zero1 --model tiny-llama
    law 4 --schedule 1f1b --pp 1 --dp 4 --microbatches 2 --model tiny-bert
    law 2 --schedule 1f1b --pp 2 --microbatches 6 --lookahead 3 --send-window 1
    same --schedule 1f1b --pp 2 --dp 2 --microbatches 4
    same --schedule bitpipe --pp 4 --microbatches 4
    same --schedule 1f1b --pp 2 --dp 2 --microbatches 4 --zero1
    for seed in 1 2 3 4 5; do
        export TD_STANDIN_SEED=$seed TD_NCCL_DELAY_US=$((seed * 400))
        law 4 --schedule zb-h1 --pp 4 --microbatches 4
    done
    ;;
faults)
    train="pexec train --model tiny-gpt2 --micro-batch 1 --seq-len 16 --schedule 1f1b --pp 2
        --microbatches 4 --data /usr/share/common-licenses/GPL-3 --val-every 0 --val-batches 1
        --quiet --gpus 2"
    # a link that stalls: one line with step, rank and task, and what each stream stands at
    # shellcheck disable=SC2086
    {
    began=$(date +%s)
    TD_NCCL_STALL=0:60 $train --steps 1000000 --timeout 2 >"$work/out" 2>&1
    code=$?
    [ $code -eq 3 ] || complain "a link stalls: exit code $code"
    [ $(($(date +%s) - began)) -lt 60 ] || complain "a link stalls: the end took too long"
    grep -q '^pexec: step [0-9]*: rank [01] .* waited 2 s for its other end' "$work/out" ||
        complain "a link stalls: $(cat "$work/out")"
    grep -q 'bytes .* rank [01]: waits, for ' "$work/out" || complain "a link stalls: no report"
    # check says where it stands as well
    TD_NCCL_STALL=0:30 pexec check $run --schedule 1f1b --pp 2 --microbatches 4 --gpus 2 \
        --timeout 2 >"$work/out" 2>&1
    code=$?
    [ $code -eq 3 ] || complain "check, a link stalls: exit code $code"
    for rank in 0 1; do
        grep -q "^rank $rank, step [0-9]*, " "$work/out" || complain "check: rank $rank is silent"
    done
    grep -q 'bytes .* rank [01]: waits, for ' "$work/out" || complain "check: $(cat "$work/out")"
    # a process that is killed: the others end soon and name it
    $train --steps 1000000 >"$work/out" 2>&1 &
    parent=$!
    sleep 2
    for child in /proc/[0-9]*/stat; do
        { read -r pid name state of rest <"$child"; } 2>/dev/null || continue
        [ "$of" != "$parent" ] || dead=$pid
    done
    kill -9 "$dead"
    began=$(date +%s)
    wait "$parent"
    code=$?
    [ $code -eq 3 ] || complain "a process is killed: exit code $code"
    [ $(($(date +%s) - began)) -lt 15 ] || complain "a process is killed: the end took too long"
    grep -q '^pexec: rank [01] .* is gone' "$work/out" || complain "killed: $(cat "$work/out")"
    grep -q '^pexec: rank [01] was ended by signal 9' "$work/out" ||
        complain "killed: $(cat "$work/out")"
    check="pexec check $run --schedule 1f1b --pp 2 --microbatches 4"
    refused 'NCCL moves tensors between GPUs' $check --wire nccl --processes 2
    refused 'between GPUs tensors go by NCCL' $check --wire tcp --gpus 2
    refused '3 processes were started, but the plan has 2 ranks' $check --gpus 3
    refused 'streams, 3 of which may wait at once' env TD_STANDIN_UNITS=3 pexec check $run \
        --schedule 1f1b --pp 4 --microbatches 8 --gpus 4
    # two processes that NCCL takes for one machine's, on one GPU
    refused 'ranks 0 and 1 have one GPU and one NCCL_HOSTID' env NCCL_HOSTID=one $check --gpus 2
    }
    ;;
*)
    complain "no part $part"
    ;;
esac
exit $bad
