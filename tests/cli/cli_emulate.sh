#!/bin/sh
# cli_emulate.sh BIN: emulation, prediction and measurement of one run, held against each other; noise.
set -u
PATH=$1:$PATH
. tests/cli/expect.sh

printf 'To be, or not to be, that is the question. %.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 \
    18 19 20 21 22 23 24 25 26 27 28 29 30 >"$work/text.txt"
what="--schedule 1f1b --pp 4 --microbatches 4 --model tiny-gpt2 --micro-batch 1 --seq-len 16"
run="$what --data $work/text.txt --steps 2 --quiet"

loss() { sed 's/.*"loss": \([^,]*\),.*/\1/' "$work/.stdout"; }

# shellcheck disable=SC2086
{
expect 0 '' pexec emulate --help
says 'Usage: pexec emulate*Example:*'
expect 0 '' pexec train $run --json --trace "$work/measured.json"
says '{*"emulated": false*}*'
threads=$(loss)
expect 0 '' pexec emulate $run --json --trace "$work/emulated.json" --cluster h100-dgx
says '{*"median_step_ns": *"emulated": true*}*'
n=$((n + 1))
[ "$(loss)" = "$threads" ] || complain "emulated loss $(loss), on threads $threads"
expect 0 '' pexec emulate $run --times F=1,B=2,comm=0.5,coll=1 --json
n=$((n + 1))
[ "$(loss)" = "$threads" ] || complain "emulated loss $(loss) with unit messages, on threads $threads"
expect 0 '' pexec emulate $run --offload 3MiB --json
n=$((n + 1))
[ "$(loss)" = "$threads" ] || complain "loss $(loss) of ranks that take turns, on threads $threads"
expect 2 'pexec: --offload 10.0 KiB: rank 0 alone needs *' pexec emulate $run --offload 10KiB
expect 3 'pexec: --offload-dir /nowhere: no file can be made there*' pexec emulate $run \
    --offload 3MiB --offload-dir /nowhere
expect 2 'pexec: --offload-dir: --offload says*' pexec emulate $run --offload-dir /tmp
expect 2 'pexec: --offload: steps that are validated afterwards*' pexec emulate $run --offload 3MiB \
    --schedule zb-h1 --post-validation
expect 2 'pexec: --times and --cluster both*' pexec emulate $run --times F=1 --cluster h100-dgx
expect 2 "pexec: *did you mean 'h100-dgx'*" pexec emulate $run --cluster h100-dg
expect 2 'pexec: --cluster local:2 has 2 devices, the plan needs 4*' pexec emulate $run --cluster local:2
absent "$work/refused.json"

expect 0 '' psim run $what --cluster h100-dgx --dtype fp32 --trace "$work/predicted.json" -q
expect 0 '' psim compare "$work/predicted.json" "$work/emulated.json" "$work/measured.json" \
    -o "$work/three.svg"
says '*predicted.json against *measured.json*step: predicted*emulated.json against *measured.json*'
says '*rank 0 compute*rank 3 compute*rank 0 peak memory: predicted *(equal)*the largest errors*rank *'
for caption in "(a) 1f1b, simulated" "(b) 1f1b, emulated" "(c) 1f1b, measured" "time/"; do
    n=$((n + 1))
    [ "$(grep -cF "$caption" "$work/three.svg")" = 1 ] || complain "the figure of the three lacks $caption"
done
expect 0 '' psim compare "$work/emulated.json" "$work/measured.json" --json
says '{"schema":1,"predicted_step_ns":*"kinds":*"memory_error_frac":0}*}*'
expect 0 '' psim compare "$work/predicted.json" "$work/emulated.json" "$work/measured.json" --json
says '{"schema":1,"comparisons":*{*}*{*}*}*'
expect 2 'psim: *MEASURED is missing*' psim compare "$work/emulated.json"
expect 2 'psim: *' psim compare "$work/emulated.json" "$work/none.json" -o "$work/none.svg"
absent "$work/none.svg"

unit="psim run --schedule 1f1b --pp 4 --microbatches 8 --times F=1,B=2"
expect 0 '' $unit --noise --spread 0.05 --runs 50 --seed 3 --json
says '*"noise":{"runs":50,"spread":0.05,"mean_ns":*"p50_ns":*'
expect 0 '' $unit --slow 3=1.5 --json
says '*"step_ns":45000000,*"slow":"3=1.5"*'
expect 2 'psim: --runs: says how --noise is drawn*' $unit --runs 50
expect 2 'psim: --spread: says how --noise is drawn*' $unit --spread 0.1
expect 2 'psim: --noise: how much do passes vary?*--spread*' $unit --noise
expect 2 'psim: --slow 4=2: no rank 4; legal: 0 to 3' $unit --slow 4=2
expect 2 'psim: --slow fast: expected RANK=FACTOR*' $unit --slow fast
}
finish
