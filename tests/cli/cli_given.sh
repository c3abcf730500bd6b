#!/bin/sh
# cli_given.sh BIN: schedule files and plans, with options that say otherwise; slices where there
# are none.
set -u
PATH=$1:$PATH
. tests/cli/expect.sh

unit='--times F=1,B=2'
tiny='--model tiny-gpt2 --dtype fp32'
psim schedule seq1f1b --pp 2 --microbatches 2 --slices 3 -o "$work/s.csv"
psim schedule seq1f1b --pp 2 --microbatches 2 --slice-tokens 100,20,8 -o "$work/cut.csv"
psim plan --schedule "$work/cut.csv" $tiny -o "$work/s.plan"

# --- a file is made already: what is given again must be what it has ---
expect 0 '' psim run --schedule "$work/s.csv" --pp 2 --microbatches 2 --slices 3 --chunks 1 $unit
expect 2 'psim: --slices 4: *s.csv has 3' psim run --schedule "$work/s.csv" --slices 4 $unit
expect 2 'psim: --chunks 4: *s.csv has 1' psim run --schedule "$work/s.csv" --chunks 4 $unit
expect 2 'psim: --opt group=safe: *made already*' \
    psim run --schedule "$work/s.csv" --opt group=safe $unit
expect 2 'psim: --slice-tokens 1,2: *has 3 slices*' \
    psim run --schedule "$work/s.csv" --slice-tokens 1,2 $unit
expect 2 'psim: --slice-tokens 8,20,100: *of other lengths*' \
    psim run --schedule "$work/cut.csv" --slice-tokens 8,20,100 $unit

# a file without lengths takes them, as the schedule of that name does
expect 0 '' psim run --schedule "$work/s.csv" --slice-tokens 100,20,8 $unit --json
grep -o '"step_ns":[0-9]*' "$work/.stdout" >"$work/a"
expect 0 '' psim run --schedule "$work/cut.csv" --slice-tokens 100,20,8 $unit --json
grep -o '"step_ns":[0-9]*' "$work/.stdout" >"$work/b"
expect 0 '' psim run --schedule "$work/s.csv" $unit --json
grep -o '"step_ns":[0-9]*' "$work/.stdout" >"$work/c"
cmp -s "$work/a" "$work/b" || complain "lengths for a file are not those of the file with them"
! cmp -s "$work/a" "$work/c" || complain "lengths for a file make no difference"

# --- plans the same, and the sizes they were lowered for ---
expect 0 '' psim run --plan "$work/s.plan" $tiny --cluster local:2
expect 2 'psim: --pp 5: *s.plan has 2 rows*' psim run --plan "$work/s.plan" --pp 5 $unit
expect 2 'psim: --slices 2: *s.plan has 3' psim run --plan "$work/s.plan" --slices 2 $unit
expect 2 'psim: --opt f=2: *' psim run --plan "$work/s.plan" --opt f=2 $unit
expect 2 'psim: --slice-tokens: *cut already*' \
    psim run --plan "$work/s.plan" --slice-tokens 1,2,3 $unit
expect 2 'psim: --tp 2 *lowered for 1 and 1' psim run --plan "$work/s.plan" --tp 2 $unit
expect 2 'psim: plan: its weights *--dtype bf16*' \
    psim run --plan "$work/s.plan" --model tiny-gpt2 --cluster local:2
for said in '--seq-len 64:lowered with 128' '--lookahead 4:lowered with 1' \
    '--send-window 1:lowered with 0' '--mapping single:lowered with channel' \
    '--account-for-loss:has its layers' '--sequence-parallel:no tensor' \
    '--post-validation:no such validation' '--placement folded:has its devices'; do
    expect 2 "psim: ${said%%:*}*: *s.plan*${said#*:}*" \
        psim run --plan "$work/s.plan" $tiny ${said%%:*} --cluster local:2
done
expect 2 'psim: --layers: *has its layers*' psim run --plan "$work/s.plan" --layers 1,7 $unit
expect 2 'psim: --layout: *has its layers*' psim run --plan "$work/s.plan" --layout 'Et|t*7L' $unit
expect 0 '' psim run --plan "$work/s.plan" $tiny --seq-len 128 --pp 2 --cluster local:2
psim plan --schedule fbd --pp 2 -m 2 --dp 2 $tiny --seq-len 16 -o "$work/fbd.plan"
expect 2 'psim: --pp 4: *4 rows and 2 stages' psim run --plan "$work/fbd.plan" --pp 4 $unit
expect 2 'psim: --zero1: *whole optimizer*' psim run --plan "$work/fbd.plan" --zero1 $unit
expect 2 'psim: --fold: *all its replicas*' psim run --plan "$work/fbd.plan" --fold $unit
expect 2 'pexec: --seq-len 32: *lowered with 16*' \
    pexec check --plan "$work/fbd.plan" --model tiny-gpt2 --seq-len 32
expect 0 '' pexec check --plan "$work/fbd.plan" --model tiny-gpt2 --pp 2 --dp 2 --seq-len 16

expect 2 'psim: --tp 3: does not divide the 4 heads of tiny-gpt2; legal: 1, 2, 4' \
    psim run 1f1b --pp 2 --microbatches 2 --tp 3 $tiny --cluster h100-dgx

# --- slices where there can be none ---
expect 2 'psim: bidirectional attention *legal: --slices 1' \
    psim schedule seq1f1b --pp 2 --microbatches 2 --slices 2 --model tiny-bert
expect 2 'psim: bidirectional attention *' \
    psim schedule --schedule "$work/s.csv" --model tiny-bert
expect 2 'psim: --slices 2: dualpipe does not cut microbatches; legal: 1*' \
    psim run dualpipe --pp 2 --microbatches 4 --slices 2 $unit
expect 2 'psim: --slice-tokens: 1f1b does not cut*' \
    psim run 1f1b --pp 2 --microbatches 2 --slice-tokens 64 $unit
expect 2 'psim: --slice-tokens: slice 1 of 0 tokens*' \
    psim run seq1f1b --pp 2 --microbatches 2 --slice-tokens 10,0,30 $unit

# --- a sweep over slices: schedules that do not cut are the baseline ---
expect 0 '' psim sweep --schedule seq1f1b,1f1b --slices 2,4 --pp 4 --microbatches 8 $unit
[ "$(grep -c '^  1f1b  *1  *33.0 ms' "$work/.stdout")" -eq 2 ] || complain "no baseline in a sweep"
expect 0 '' psim sweep --schedule seq1f1b,1f1b --slices 4 --pp 4 --microbatches 8 $unit
says '*not cut into slices: 1f1b'
expect 0 '' psim sweep --schedule seq1f1b,1f1b --slices 4 --pp 4 --microbatches 8 $unit --json
says '*"schedule":"seq1f1b",*"slices":4,*"schedule":"1f1b",*"slices":1,*'
expect 2 'psim: *1f1b does not cut*' psim sweep --schedule 1f1b:slices=2 --pp 4 --microbatches 8 $unit

# --- streams that messages share can make an order wait for itself ---
expect 1 'psim: deadlock: *; *--mapping channel parts them' psim run dualpipev --pp 4 \
    --microbatches 8 --mapping direction --lookahead 2 --send-window 1 $unit

finish
