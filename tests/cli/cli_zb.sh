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

# one order for one machine, whatever verb asks for it: run, schedule, plan and the executor
for name in zb-auto 'zb-auto --opt placement=v' zb-v; do
    what="--schedule $name --pp 4 --microbatches 8 --model tiny-gpt2 --dtype fp32"
    on="$what --layers 1,1,2,2,1,1,0,0 --cluster h100-dgx"
    case $name in zb-auto) on="$what --layers 1,3,2,2 --cluster h100-dgx" ;; esac
    expect 0 '' psim run $on --json --trace "$work/ran.json"
    step=$(sed 's/.*"step_ns":\([0-9]*\).*/\1/' "$work/.stdout")
    expect 0 '' psim plan $on -o "$work/plan"
    expect 0 '' psim run --plan "$work/plan" --model tiny-gpt2 --dtype fp32 --cluster h100-dgx --json
    says "*\"step_ns\":$step,*"
    expect 0 '' psim schedule $on -o "$work/order.csv"
    expect 0 '' psim check "$work/order.csv"
    expect 0 '' psim check $on
    expect 0 '' pexec train $on --data /usr/share/common-licenses/GPL-3 --steps 1 --quiet \
        --trace "$work/trained.json"
    expect 0 '' psim compare "$work/ran.json" "$work/trained.json" --json
    expect 0 '' pexec check $on --json
done
expect 2 'pexec: *I of stage 0*' pexec check --schedule zb-auto --pp 4 --microbatches 8 \
    --model tiny-gpt2 --times F=1
expect 2 'pexec: *give --times *--model with --cluster or --profile*' \
    pexec check --schedule zb-auto --pp 4 --microbatches 8 --model tiny-gpt2
expect 2 'psim: *nowhere*' psim plan zb-v --pp 4 --microbatches 8 --cluster nowhere

# limits: in activations, in bytes, and the least that works
expect 1 'psim: *legal: --activation-limit 1 or more*' \
    psim run zb-auto --pp 4 --microbatches 8 --times $times --activation-limit 0.5
expect 2 'psim: *give --model*' \
    psim run zb-auto --pp 4 --microbatches 8 --times $times --memory-limit 1GiB
run="psim run zb-auto --pp 4 --microbatches 8 --model tiny-gpt2 --cluster h100-dgx --json"
expect 1 'psim: *no order of zb-auto fits*the least that works is *' $run --memory-limit 1KiB
least=$(sed 's/.*works is \([0-9]*\) bytes.*/\1/' "$work/.stderr")
expect 0 '' $run --memory-limit "$least"
expect 1 'psim: *the least that works is *' $run --memory-limit $((least - 1))

for name in zb-h1 zb-h2 zb-v v-half v-min 1f1b-v interleaved-zb; do
    run="psim run $name --pp 4 --microbatches 8 --model tiny-gpt2 --cluster h100-dgx --json"
    expect 1 'psim: *needs *legal: --memory-limit * or more*' $run --memory-limit 1KiB
    least=$(sed 's/.*--memory-limit \([0-9]*\) or more.*/\1/' "$work/.stderr")
    expect 0 '' $run --memory-limit "$least"
    expect 1 'psim: *needs *' $run --memory-limit $((least - 1))
done

# an order that stays the same for a little less does not end in one microbatch at a time
for limit in 3700 3750; do
    expect 0 '' psim run zb-auto --pp 4 --microbatches 12 --model gpt2-355m --cluster a100-dgx \
        --opt placement=v --memory-limit ${limit}MiB --json
    case "$(cat "$work/.stdout")" in
    *'"peak_activations":1}'*) complain "$limit MiB: one microbatch at a time" ;;
    esac
done

# a limit of activations holds for orders that were not made for it, whatever they come from
unit='--pp 4 --microbatches 8 --times F=1,I=1,W=1'
expect 1 'psim: --activation-limit 3: rank 0 keeps 4 *4 of 4 ranks*legal: --activation-limit 4 *' \
    psim run zb-h1 $unit --activation-limit 3
expect 0 '' psim run zb-h1 $unit --activation-limit 4
expect 1 'psim: --activation-limit 2.5: rank 0 keeps 3 *' \
    psim plan --schedule v-half --pp 4 --microbatches 8 --activation-limit 2.5
expect 1 'psim: --activation-limit 3: *' psim run zb-v --opt form=hand $unit --activation-limit 3
expect 1 'psim: --activation-limit 3: zb-v keeps 4 *' psim run zb-v $unit --activation-limit 3
expect 0 '' psim run zb-auto $unit --activation-limit 8 --opt deltas=2,-1,-1
expect 0 '' psim schedule v-min --pp 4 --microbatches 8
cp "$work/.stdout" "$work/v-min.csv"
expect 1 'psim: --activation-limit 1.5: rank 0 keeps 2 *' \
    psim run "$work/v-min.csv" --times F=1,I=1,W=1 --activation-limit 1.5

# a plan that waits in a circle for its options says which
expect 1 'psim: deadlock: *: --send-window 0 *: --mapping channel *' \
    psim run v-half $unit --mapping single --send-window 1

# what is not weights, gradients and optimizer: V-Min's below V-Half's below 1F1B's, as measured
most() {
    tr '}' '\n' | sed -n 's/.*"activation_bytes": *\([0-9]*\).*/\1/p' | sort -n | tail -n 1
}
last=0
for name in v-min v-half 1f1b; do
    tiny="--schedule $name --pp 4 --microbatches 8 --model tiny-llama --json"
    expect 0 '' pexec check $tiny
    now=$(most <"$work/.stdout")
    expect 0 '' psim run $tiny --dtype fp32 --cluster local:4
    expect 0 '' test "$now" = "$(most <"$work/.stdout")"
    expect 0 '' test "$now" -gt "$last"
    last=$now
done

# more memory is never much worse, also where much of it goes to what no order decides
last=
for limit in 5593497 6000000 6991872; do
    expect 0 '' psim run --schedule zb-auto --model tiny-gpt2 --pp 4 --microbatches 9 \
        --cluster h100-dgx --post-validation --memory-limit $limit --json
    now=$(sed 's/.*"step_ns":\([0-9]*\).*/\1/' "$work/.stdout")
    [ -z "$last" ] || expect 0 '' test $((now * 100)) -le $((last * 105))
    last=$now
done

finish
