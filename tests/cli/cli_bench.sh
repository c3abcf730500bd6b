#!/bin/sh
# cli_bench.sh BIN: a bench, in one process and in two; the profile of both; what is refused.
set -u
PATH=$1:$PATH
. tests/cli/expect.sh

what="--model tiny-gpt2 --seq-len 32"
# rows of a samples file with these words in the columns what, pass, part
rows() { awk -v want="$2" '$1 " " $2 " " $3 == want { n++ } END { print n + 0 }' "$1"; }
has()
{
    n=$((n + 1))
    [ "$(rows "$1" "$2")" -gt 0 ] || complain "$1 has no row '$2'"
}

# shellcheck disable=SC2086
{
expect 0 '*' pexec bench $what --budget 8 --precision 0.2 --repeats 3 -o "$work/all.txt"
for row in "pass F layers" "pass B layers" "pass I layers" "pass W layers" "pass R layers" \
    "pass F embedding" "pass B embedding" "pass F head" "pass B head" "pass W head" \
    "optimizer - -" "norm - -" "product - -" "copy - -" "message - -" "all_reduce - -"; do
    has "$work/all.txt" "$row"
done
for key in device cores compiler blas date clock_nominal_mhz clock_now_mhz timer_ns precision \
    other_load source left_out; do
    n=$((n + 1))
    grep -q "^# $key ." "$work/all.txt" || complain "the head of the samples has no $key"
done
n=$((n + 1))
[ "$(awk '$1 == "message" { print $9 }' "$work/all.txt" | sort -n | sed -n '1p;$p' | tr '\n' ' ')" = \
    "8 67108864 " ] || complain "messages are not of 8 B to 64 MiB"
if grep -q '^# left_out 0' "$work/all.txt"; then # a machine with time for all of it
    for row in "pass S head" "pass T head" "pass S fused-head" "pass E embedding" \
        "pass G embedding"; do
        has "$work/all.txt" "$row"
    done
fi
expect 0 '*' pexec bench $what --budget 0 --repeats 1 --tp 2 --recompute full -o "$work/two.txt"
n=$((n + 1))
[ "$(awk '$1 == "pass" { print $8, $13 }' "$work/two.txt" | sort -u)" = "full 2" ] ||
    complain "--tp 2 --recompute full measured other passes"
expect 0 '*' pexec bench $what --budget 0 --repeats 3 --processes 2 -o "$work/tcp.txt"
n=$((n + 1))
[ "$(awk '!/^#/ && $1 != "what" { print $1, $18 }' "$work/tcp.txt" | sort -u | tr '\n' ' ')" = \
    "all_reduce tcp message tcp " ] || complain "two processes measured something else"

expect 2 'pexec: --precision 2: *' pexec bench $what --precision 2
expect 2 'pexec: --budget -1: *' pexec bench $what --budget -1
expect 2 'pexec: *' pexec bench $what --tp 3

run="psim run --schedule 1f1b --pp 2 --microbatches 4 $what --dtype fp32"
expect 0 '' psim calibrate "$work/all.txt" "$work/two.txt" "$work/tcp.txt" -o "$work/p.json"
says '*pass F of layers: *pass B of layers, recompute full, tp 2: *message by threads: *message by tcp: *'
expect 0 '' $run --profile "$work/p.json" --noise --json
says '*"noise":{"runs":*'
expect 0 '' $run --profile "$work/p.json" --tp 2 --recompute full --link tcp --json
expect 0 '' psim run --schedule vocab-2 --pp 4 --microbatches 6 $what --dtype fp32 \
    --profile "$work/p.json" --json

# emulation on what this machine was measured to be
printf 'To be, or not to be, that is the question. %.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 \
    18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 >"$work/text.txt"
train="--schedule 1f1b --pp 2 --microbatches 4 $what --data $work/text.txt --steps 2 --quiet --json"
loss() { sed 's/.*"loss": \([^,]*\),.*/\1/' "$work/.stdout"; }
expect 0 '' pexec train $train
threads=$(loss)
expect 0 '' pexec emulate $train --profile "$work/p.json" --link tcp
n=$((n + 1))
[ "$(loss)" = "$threads" ] || complain "emulated loss $(loss), on threads $threads"
expect 2 'pexec: --cluster and --profile both*' pexec emulate $train --profile "$work/p.json" \
    --cluster h100-dgx
expect 2 'pexec: --times and --profile both*' pexec emulate $train --profile "$work/p.json" --times F=1
expect 2 'pexec: *measured with model tiny-gpt2*is causal*' pexec emulate $train --model tiny-bert \
    --profile "$work/p.json"

expect 0 '' psim calibrate "$work/two.txt" -o "$work/q.json" -q
expect 2 'psim: *measured with tensor-parallel degree 2, this run has 1*' $run --profile "$work/q.json"
expect 0 '' psim calibrate "$work/q.json" "$work/p.json" -o "$work/r.json"
says '*both have it*'
n=$((n + 1))
[ "$(grep -c '"date":' "$work/r.json")" = 4 ] || complain "the merged profile lost a source"
sed 's/^# device .*/# device another/' "$work/tcp.txt" >"$work/far.txt"
expect 2 "psim: *far.txt: *device is *" psim calibrate "$work/all.txt" "$work/far.txt"
head -n 40 "$work/all.txt" >"$work/cut.txt"
expect 2 'psim: *cut.txt:*was it cut?*' psim calibrate "$work/cut.txt"
expect 2 'psim: *' psim calibrate "$work/none.txt"
}
finish
