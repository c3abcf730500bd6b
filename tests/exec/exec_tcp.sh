#!/bin/sh
# exec_tcp.sh BIN ROUNDS: ranks as processes that meet over TCP, started by torchrun's variables: the
# numbers of threads, bit for bit; what goes wrong at the start is said in one line; and when a rank is
# killed at a random moment, in each of the rounds, the others end within ten seconds and name it.
set -u
PATH=$1:$PATH
rounds=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0
complain() {
    echo "$*"
    bad=1
}
port=$((20000 + $$ % 20000))
run="--model tiny-gpt2 --micro-batch 1 --seq-len 16"
printf 'To be, or not to be, that is the question: %.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 \
    18 19 20 21 22 23 24 25 26 27 28 29 30 >"$work/text.txt"

# rank R N COMMAND...: one process in the background; its output goes to out.R.
rank() {
    r=$1 n=$2
    shift 2
    RANK=$r WORLD_SIZE=$n LOCAL_RANK=$r MASTER_ADDR=127.0.0.1 MASTER_PORT=$port \
        "$@" >"$work/out.$r" 2>&1 &
    eval "pid_$r=$!"
}

# everyone N CODE: all end, with this exit code.
everyone() {
    i=0
    while [ "$i" -lt "$1" ]; do
        eval "wait \$pid_$i"
        got=$?
        [ "$got" -eq "$2" ] || complain "rank $i: exit code $got, not $2: $(cat "$work/out.$i")"
        i=$((i + 1))
    done
}

# same N PLAN...: three steps of check as threads and as processes say the same.
same() {
    n=$1
    shift
    port=$((port + 1))
    i=$n
    # shellcheck disable=SC2086
    {
    pexec check $run "$@" --wire threads >"$work/threads" 2>&1 || complain "threads $*: failed"
    while [ "$i" -gt 0 ]; do # rank 0 comes last
        i=$((i - 1))
        rank "$i" "$n" pexec check $run "$@"
    done
    }
    everyone "$n" 0
    grep -v '^process' "$work/threads" >"$work/a"
    grep -v '^process' "$work/out.0" >"$work/b"
    diff "$work/a" "$work/b" || complain "$*: threads and processes differ"
    i=1
    while [ "$i" -lt "$n" ]; do
        [ ! -s "$work/out.$i" ] || complain "rank $i speaks too: $(cat "$work/out.$i")"
        i=$((i + 1))
    done
}
same 4 --schedule 1f1b --pp 4 --microbatches 8
same 2 --schedule interleaved-1f1b --pp 2 --chunks 2 --microbatches 4 --model tiny-llama
same 4 --schedule 1f1b --pp 2 --dp 2 --microbatches 4 --zero1
same 4 --schedule bitpipe --pp 4 --microbatches 8
same 4 --schedule zb-h2 --pp 4 --microbatches 8 --post-validation --clip 0.01

check="pexec check $run --schedule 1f1b --pp 2 --microbatches 4"
# processes that pexec starts itself, and processes that are told by flags who they are
# shellcheck disable=SC2086
{
$check --wire threads >"$work/threads" 2>&1 || complain "threads: failed"
$check --processes 2 >"$work/out" 2>&1 || complain "--processes 2: failed: $(cat "$work/out")"
grep -v '^process' "$work/threads" >"$work/a"
grep -v '^process' "$work/out" | diff "$work/a" - || complain "--processes 2: another result"
port=$((port + 1))
$check --world 2 --rendezvous 127.0.0.1:$port --rank 1 --local-rank=1 >"$work/out.1" 2>&1 &
$check --world 2 --rendezvous tcp://127.0.0.1:$port --rank=0 --local-rank 0 >"$work/out" 2>&1 &&
    complain "another --rendezvous was taken for the same command line"
wait
port=$((port + 1))
$check --world 2 --rendezvous 127.0.0.1:$port --rank 1 --local-rank=1 >"$work/out.1" 2>&1 &
$check --world 2 --rendezvous 127.0.0.1:$port --rank=0 --local-rank 0 >"$work/out" 2>&1 ||
    complain "flags: failed: $(cat "$work/out")"
wait
grep -v '^process' "$work/out" | diff "$work/a" - || complain "flags: another result"
# refuse PATTERN COMMAND...: exit code 2, with one line that holds the pattern
refuse() {
    pattern=$1
    shift
    "$@" >"$work/out.9" 2>&1
    code=$?
    [ $code -eq 2 ] || complain "$*: exit code $code"
    said 9 "$pattern"
}
}
# said R PATTERN: one line of rank R's output holds the pattern.
said() {
    [ "$(grep -c '^pexec:' "$work/out.$1")" -eq 1 ] || complain "rank $1: not one line: $(cat "$work/out.$1")"
    grep -q -e "$2" "$work/out.$1" || complain "rank $1: not '$2': $(cat "$work/out.$1")"
}
# shellcheck disable=SC2086
{
refuse '3 processes were started, but the plan has 2 ranks' $check --processes 3
refuse 'started by torchrun already' env RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 \
    MASTER_PORT=$port $check --processes 2
refuse 'they meet over TCP' $check --processes 2 --wire threads
refuse '.--world is not set' $check --rank 1
refuse '.--rank, --world and --local-rank go with it' $check --rendezvous h:1
# one of them is killed, one is interrupted: all end
pexec train $run --schedule 1f1b --pp 2 --microbatches 4 --quiet --data "$work/text.txt" \
    --steps 1000000 --processes 2 >"$work/out" 2>&1 &
parent=$!
sleep 0.7
for child in /proc/[0-9]*/stat; do # the second field is the name, the fourth the parent
    { read -r pid name state of rest <"$child"; } 2>/dev/null || continue
    [ "$of" != "$parent" ] || dead=$pid
done
kill -9 "$dead"
wait "$parent"
code=$?
[ $code -eq 3 ] || complain "--processes 2, one killed: exit code $code: $(cat "$work/out")"
grep -q '^pexec: rank [01] was ended by signal 9' "$work/out" ||
    complain "--processes 2, one killed: $(cat "$work/out")"
pexec train $run --schedule 1f1b --pp 2 --microbatches 4 --quiet --data "$work/text.txt" \
    --steps 1000000 --processes 2 >"$work/out.9" 2>&1 &
parent=$!
sleep 0.7
kill -TERM "$parent"
wait "$parent"
code=$?
[ $code -eq 130 ] || complain "--processes 2, interrupted: exit code $code"
said 9 'interrupted after step'
}
# shellcheck disable=SC2086
{
# one differs
port=$((port + 1))
rank 0 2 $check
rank 1 2 $check --seed 3
everyone 2 2
said 0 'rank 1: version and command line: not the same as on rank 0'
# one does not come
port=$((port + 1))
rank 0 2 $check --timeout 1
everyone 1 3
said 0 'not there in time: rank 1'
# nobody is there
rank 1 2 $check --timeout 1
wait "$pid_1"
said 1 'rank 1 cannot reach rank 0 at 127.0.0.1 port'
# two say the same
port=$((port + 1))
rank 0 3 $check
rank 1 3 $check
sleep 0.3
RANK=1 WORLD_SIZE=3 LOCAL_RANK=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=$port $check >/dev/null 2>&1
wait "$pid_0" && complain "a rank that is there twice was taken"
wait "$pid_1"
said 0 'two processes say that they are rank 1'
# the port belongs to another run
port=$((port + 1))
rank 0 2 $check --timeout 3
sleep 0.3
first=$pid_0
RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=$port $check >"$work/out.9" 2>&1 &&
    complain "a port in use was taken"
said 9 "cannot listen on port $port"
wait "$first"
# an unknown host
RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 MASTER_ADDR=no-such-host.invalid MASTER_PORT=$port $check \
    >"$work/out.9" 2>&1 && complain "an unknown host was taken"
said 9 "rank 0's host no-such-host.invalid"
# no file is left for the third connection
port=$((port + 1))
rank 0 4 sh -c 'ulimit -n 6; exec "$@"' sh $check --timeout 5
for i in 1 2 3; do rank $i 4 $check --timeout 5; done
for i in 0 1 2 3; do
    eval "wait \$pid_$i" && complain "rank $i of 4 was content without files"
done
said 0 'rank 0 cannot .*: Too many open files'
# variables that are missing
RANK=1 $check >"$work/out.9" 2>&1 && complain "RANK alone was taken"
said 9 'WORLD_SIZE is not set'
}

round=0
while [ "$round" -lt "$rounds" ]; do
    round=$((round + 1))
    port=$((port + 1))
    dead=$((round % 4))
    i=4
    while [ "$i" -gt 0 ]; do
        i=$((i - 1))
        # shellcheck disable=SC2086
        rank "$i" 4 pexec train $run --schedule 1f1b --pp 4 --microbatches 8 --quiet \
            --data "$work/text.txt" --steps 1000000
    done
    sleep "0.$(((round * 7919) % 700 + 100))"
    eval "kill -9 \$pid_$dead"
    eval "wait \$pid_$dead" 2>/dev/null
    waited=0
    i=0
    while [ "$i" -lt 4 ]; do
        eval "pid=\$pid_$i"
        # shellcheck disable=SC2154
        if [ "$i" -eq "$dead" ] || ! kill -0 "$pid" 2>/dev/null; then
            i=$((i + 1))
        elif [ "$waited" -ge 100 ]; then
            complain "round $round: rank $dead was killed, and rank $i hangs"
            kill -9 "$pid"
        else
            sleep 0.1
            waited=$((waited + 1))
        fi
    done
    speaker=$([ "$dead" -eq 0 ] && echo 1 || echo 0)
    i=0
    while [ "$i" -lt 4 ]; do
        eval "wait \$pid_$i" 2>/dev/null && complain "round $round: rank $i: exit code 0"
        i=$((i + 1))
    done
    grep -q "^pexec: .*rank $dead\b" "$work/out.$speaker" ||
        complain "round $round: rank $dead is not named: $(cat "$work/out.$speaker")"
done
exit $bad
