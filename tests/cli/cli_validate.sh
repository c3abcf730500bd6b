#!/bin/sh
# cli_validate.sh BIN: post-validation on the command line: what it brings, through schedule and plan
# files, and what it does not go with.
set -u
PATH=$1:$PATH
. tests/cli/expect.sh

h2="zb-h2 --pp 4 --microbatches 8 --times F=1,I=1,W=1"
expect 0 '' psim run $h2 --json
says '*"step_ns":27000000,"period_ns":27000000,*'
expect 0 '' psim run $h2 --post-validation --json
says '*"step_ns":27000000,"period_ns":24000000,"period_bubble_frac":0,*'
expect 0 '' psim run $h2 --post-validation
says '*period *24.0 ms*'
expect 0 '' psim schedule zb-h2 --pp 4 --microbatches 8 --post-validation
says '*# validate*'
cp "$work/.stdout" "$work/late.csv"
expect 0 '' psim run "$work/late.csv" --times F=1,I=1,W=1 --json
says '*"period_ns":24000000,*'
expect 0 '' psim plan $h2 --post-validation
cp "$work/.stdout" "$work/late.plan"
expect 0 '' psim run --plan "$work/late.plan" --times F=1,I=1,W=1 --json
says '*"period_ns":24000000,*'
expect 0 '' psim check "$work/late.plan"
expect 0 '' psim run $h2 --post-validation --slow 2=1.5 --json
says '*"period_ns":36000000,*'

# several steps behind each other: the first takes 27 ms, those behind it 24 ms more each
expect 0 '' psim run $h2 --post-validation --periods 3 --trace "$work/three.json" -q
grep -q '"step_ns":75000000,' "$work/three.json" || complain "three steps do not take 75 ms"
[ "$(grep -c '"name":"F 7"' "$work/three.json")" -eq 12 ] || complain "not each step has its F7"
expect 2 'psim: *--periods 2: *add --post-validation*' psim run $h2 --periods 2
expect 2 'psim: *--periods*1*' psim run $h2 --post-validation --periods 0

# what has to meet or to wait at the end of a step
expect 2 'psim: *does not go with a sharded vocabulary*' \
    psim run vocab-1 --pp 4 --microbatches 16 --times F=1,B=2 --post-validation
expect 2 'psim: *does not go with forward rows*' \
    psim run fbd --pp 4 --microbatches 8 --times F=1,B=2 --post-validation
expect 2 'psim: *does not go with --zero1*' \
    psim run zb-h1 --pp 2 --microbatches 4 --times F=1,B=2 --model tiny-gpt2 --dp 2 --zero1 \
    --post-validation
expect 2 'psim: *does not go with --send-window 1 --lookahead 0*' \
    psim run zb-h1 --pp 2 --microbatches 4 --times F=1,B=2 --send-window 1 --lookahead 0 \
    --post-validation
finish
