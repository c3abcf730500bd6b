#!/bin/sh
# cli_zb.sh BIN: searched schedules on the command line: durations, limits, what a search says.
set -u
PATH=$1:$PATH
. tests/cli/expect.sh

times=F=10,I=12,W=9,comm=1
expect 0 '' psim run zb-auto --pp 4 --microbatches 8 --times $times --activation-limit 8 \
    --activation-deltas 2,-1,-1 --opt search=exact --json
says '*"search_span_ns":257000000,"search_bound_ns":257000000,*'
expect 0 '' psim run zb-auto --pp 4 --microbatches 8 --times $times --search-time 0.05 -q
says '*search *longest span of a rank*'

# durations: none, too few, a row of a file for each stage
expect 2 'psim: *' psim run zb-auto --pp 4 --microbatches 8
expect 2 'psim: *I of stage 0*--times*' psim run zb-auto --pp 4 --microbatches 8 --times F=1
printf 'comm=1\nF=10,I=12,W=9\nF=8,I=9,W=8\nF=9,I=9,W=7\nF=14,I=13,W=10\n' >"$work/times"
expect 0 '' psim run zb-auto --pp 4 --microbatches 8 --times "$work/times" --json
says '*"search_bound_ns":296000000,*'
expect 2 'psim: *rows of 4 stages, there are 8*' \
    psim run zb-auto --pp 4 --microbatches 8 --times "$work/times" --opt placement=v

# limits: in activations, in bytes, and the least that works
expect 2 'psim: *legal: 1 or more*' \
    psim run zb-auto --pp 4 --microbatches 8 --times $times --activation-limit 0.5
expect 2 'psim: *give --model*' \
    psim run zb-auto --pp 4 --microbatches 8 --times $times --memory-limit 1GiB
run="psim run zb-auto --pp 4 --microbatches 8 --model tiny-gpt2 --cluster h100-dgx --json"
expect 2 'psim: *no order of zb-auto fits*the least that works is *' $run --memory-limit 1KiB
least=$(sed 's/.*works is \([0-9]*\) bytes.*/\1/' "$work/.stderr")
expect 0 '' $run --memory-limit "$least"
expect 2 'psim: *the least that works is *' $run --memory-limit $((least - 1))

finish
