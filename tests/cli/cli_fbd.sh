#!/bin/sh
# cli_fbd.sh BIN: forward-backward disaggregation and tensor parallelism, from the command line.
set -u
PATH=$1:$PATH
. tests/cli/expect.sh

unit="--times F=1,B=2 --json"

# --- makespans of the worked examples ---
expect 0 '' psim run fbd --pp 4 -m 8 $unit
says '*"ranks":8,"devices":8,*"step_ns":33000000,*'
expect 0 '' psim run fbd --pp 4 -m 8 --opt topology=lagged $unit
says '*"step_ns":33000000,*'
expect 0 '' psim run fbd --pp 2 -m 8 --tp 2 --opt merge-forward=1 $unit
says '*"devices":6,*"step_ns":28000000,*'
expect 0 '' psim run fbd --pp 2 -m 8 --tp 4 --opt merge-forward=1 $unit
says '*"devices":10,*"step_ns":37000000,*'
blocking="--protocol rendezvous --send-window 1 --lookahead 0"
expect 0 '' psim run fbd --pp 4 -m 8 --opt topology=direct $blocking $unit
says '*"step_ns":45000000,*'
expect 0 '' psim run fbd --pp 4 -m 32 --opt topology=lagged $blocking $unit
says '*"step_ns":105000000,*'
expect 0 '' psim run fbd --pp 4 -m 32 --opt topology=lagged $blocking --json --times F=1,B=2,comm=0.5
says '*"step_ns":155000000,*'
expect 1 'psim: *deadlock: *' psim run 1f1b --pp 4 -m 8 $blocking $unit

# --- devices times period against 1F1B: 6 to 3, 9 to 6, 20 to 12, 72 to 24, a thousand times ---
expect 0 '' psim sweep -s 1f1b,fbd:merge-forward=1 --pp 1 -m 1000 --tp 1,2,4,8 $unit
says '*"devices":1,"device_ns":3000000000}*"devices":2,"device_ns":6000000000,*'
says '*"devices":2,"device_ns":6000000000}*"devices":3,"device_ns":9000000000,*'
says '*"devices":4,"device_ns":12000000000}*"devices":5,"device_ns":20000000000,*'
says '*"devices":8,"device_ns":24000000000}*"devices":9,"device_ns":72000000000,*'
expect 0 '' psim sweep -s 1f1b:pp=4,1f1b:pp=4:recompute=full,fbd:pp=2 -m 8 --model tiny-gpt2 \
    --cluster h100-dgx
says '*devices  devices\*step  forward peak*iB*'

# full recompute repeats the forward: 11 x 4; on top of fbd's own, (P - 1) F + M (R + b) + (P - 1) b
expect 0 '' psim run 1f1b --pp 4 -m 8 --recompute full $unit
says '*"step_ns":44000000,*'
expect 0 '' psim run fbd --pp 4 -m 8 --recompute full $unit
says '*"step_ns":44000000,*'
expect 0 '' psim run zb-h1 --pp 1 -m 8 --recompute full $unit
says '*"step_ns":32000000,*'
# at equal devices, half the stages are twice as long: 2 + 8 x 6 + 4
expect 0 '' psim sweep -m 8 $unit -s \
    1f1b:pp=4,1f1b:pp=4:recompute=full,fbd:times=F=2,B=4:pp=2,1f1b:times=R=2,F=1,B=2:pp=4:recompute=full
says '*"1f1b:pp=4",*:33000000,*=full",*:44000000,*B=4:pp=2",*:54000000,*:pp=4:recompute=full",*:55000000,*'
expect 0 '' psim sweep -m 8 --times F=1,B=2 -s 1f1b:pp=4,fbd:pp=2
says '*--times are of 1/P of the model: of 1/4 and of 1/2 here*'
expect 0 '' psim sweep -m 8 --model tiny-gpt2 --times F=1,B=2 -s 1f1b:layers=1,7,1f1b:layers=3,5 --pp 2
says '*1f1b:layers=1,7 *1f1b:layers=3,5 *'

# --- a schedule that is printed is the same when read back ---
psim schedule fbd --pp 3 -m 5 --opt topology=lagged --opt weights=all-step >"$work/fbd.csv"
expect 0 '' psim schedule "$work/fbd.csv"
says '*# handoff lagged*# credits 2 1 0*# weights all-step*'
expect 0 '' psim run "$work/fbd.csv" $unit
says '*"step_ns":*'
expect 2 'psim: *two ranks*csv can' psim schedule fbd --pp 2 -m 2 --format torch

# --- what cannot be ---
expect 2 'psim: *--opt credits=0*legal: 1 and more*' psim run fbd --pp 2 -m 2 --opt credits=0 $unit
expect 2 'p*: *did you mean topology*' psim run fbd --pp 2 -m 2 --opt topolgy=direct $unit
expect 2 'p*: *--zero1: stage 0 steps on a row of tensor-parallel degree 1 and on one of 2*' \
    pexec check --schedule fbd --pp 2 -m 2 --tp 2 --opt merge-forward=1 --opt weights=all-step \
    --zero1 --dp 2 --model tiny-gpt2
expect 2 'p*: *4 heads*' pexec check --schedule 1f1b --pp 1 -m 2 --tp 3 --model tiny-gpt2
expect 2 'p*: *15 tokens*evenly among 2 shards*' pexec check --schedule zb-h1 --pp 2 -m 4 --tp 2 \
    --sequence-parallel --model tiny-gpt2 --micro-batch 1 --seq-len 15

# --- executed ---
expect 0 '' pexec check --schedule fbd --pp 2 -m 2 --opt topology=lagged --model tiny-llama --json
says '*"bitwise": true*"copies_equal": true*"memory_exact": true*"pass": true*'
expect 0 '' pexec check --schedule fbd --pp 2 -m 2 --tp 2 --model tiny-gpt2 --seq-len 16 --json
says '*"ranks": 8*"copies_equal": true*"memory_exact": true*"pass": true*'
expect 0 '' pexec check --schedule fbd --pp 2 -m 2 --tp 2 --opt merge-forward=1 --model tiny-gpt2 \
    --seq-len 16 --json
says '*"ranks": 6*"copies_equal": true*"memory_exact": true*"pass": true*'

# sends that block, receives that are posted when the pass before has ended
for pair in direct:45 lagged:33; do
    expect 0 '' psim run --schedule fbd --opt topology=${pair%:*} --pp 4 --microbatches 8 \
        --times F=1,B=2 --protocol rendezvous --send-window 1 --json
    says "*\"step_ns\":${pair#*:}000000,*"
done
# what an actor simulator of messages that leave once they are wanted measured: 352, not 337
expect 0 '' psim run --schedule 1f1b --pp 8 --microbatches 64 --times F=1,B=2,comm=1 \
    --protocol rendezvous --json
says '*"step_ns":352000000,*'

finish
