#!/bin/sh
# cli_slices.sh BIN: slices of sequences, from the command line.
set -u
PATH=$1:$PATH
. tests/cli/expect.sh

expect 0 '' psim slices --help
says "Usage: psim slices*Example:*psim *Exit codes:*"
[ "$(awk 'length($0) > 80' "$work/.stdout" | grep -vc '^  psim')" -eq 0 ] ||
    complain "psim slices --help is wider than 80"

# --- least latency: units of 8 tokens, t = 40 + 8 i + i^2 + 2 i j ---
formula=c=40,i=1,ii=0.015625,ij=0.03125
expect 0 '' psim slices --latency $formula --seq-len 128 --pp 4 --json
says '{"schema":1,"method":"terapipe",*"latency_ms":965,"sum_ms":584,"max_ms":127,"fill_ms":381,*'
expect 0 '' psim slices --latency $formula --seq-len 128 --pp 4 --batch 4 --json
says '*"latency_ms":2568,*"groups":\[{"sequences":1,"slices":\[64,32,32\]*'
expect 0 '' psim slices --latency $formula --seq-len 128 --pp 4 --explain
says '*--slice-tokens *= 584 + 3 x 127 = 584 + 381 = 965 ms*'
expect 0 '' psim slices --latency $formula --seq-len 128 --pp 4 --method equal-time --slices 4 --json
says '*"max_ms":145,*"slices":\[56,32,24,16\]*'
expect 0 '' psim slices --model gpt2 --cluster v100-dgx1 --pp 8
says '*--slice-tokens *not cut*best even cut*'

# --- equal cost ---
cat >"$work/gpt.json" <<'EOF'
{"model_type":"gpt2","n_layer":32,"n_embd":2560,"n_head":32,"n_positions":32768,"vocab_size":50257}
EOF
equal="psim slices --method equal-flops --model $work/gpt.json --pad-vocab 128"
expect 0 '' $equal --slices 4 --seq-len 16384 --json
says '*"vocab":50304,*"slices":\[5271,4232,3639,3242\],*'
expect 0 '' $equal --slices 2 --explain
says '*--slice-tokens 20211,12557*'
expect 0 '' $equal --slices 4 --tp 8 --sequence-parallel --json
says '*"granularity":8,*"vocab":51200,*'

# --- measurements: t(i, 0) = i / 8 and 1 + i / 16 + i j / 1024 behind j ---
{
    echo '# batch tokens context ms'
    for i in 8 16 64; do echo "1 $i 0 $(awk "BEGIN { print $i / 8 }")"; done
    for i in 8 16; do
        for j in 8 32; do echo "1 $i $j $(awk "BEGIN { print 1 + $i / 8 + $i / 16 + $i * $j / 1024 }")"; done
    done
} >"$work/times.txt"
expect 0 '' psim slices --latency "$work/times.txt" --seq-len 64 --pp 3 --granularity 16 --json
cp "$work/.stdout" "$work/first"
expect 0 '' psim slices --latency "$work/times.txt" --seq-len 64 --pp 1 --granularity 16 --json
says '*"latency_ms":8,*"slices":\[64\]*'
echo '1 8 zero 3' >"$work/bad.txt"
expect 2 "psim: *bad.txt:1:1: wants BATCH*" psim slices --latency "$work/bad.txt" --seq-len 64 --pp 2
echo '1 8 8 3' >"$work/bad.txt"
expect 2 'psim: *no line without context' psim slices --latency "$work/bad.txt" --seq-len 64 --pp 2
expect 2 'psim: *no line for 2 sequences*' psim slices --latency "$work/times.txt" --seq-len 64 \
    --pp 2 --batch 2

# --- factorisations: with two sequences tensor parallelism in the node and one deep pipe win ---
expect 0 '' psim slices --factorisations 384 --batch 2 --model gpt3-175b --cluster v100-dgx1:48
says '*tensor*
     1    48       8          2 *'
expect 0 '' psim slices --factorisations 8 --batch 8 --model gpt2 --cluster v100-dgx1 --json
says '{*"method":"factorisations","devices":8,*"dp":*"pp":*"tp":*"step_ms":*'

# --- refused ---
expect 2 'psim: *cannot be cut*' psim slices --model bert-large --pp 2 --cluster v100-dgx1
expect 2 'psim: *cannot be cut*' psim run --schedule seq1f1b --pp 2 --microbatches 2 --model tiny-bert \
    --cluster h100-dgx
expect 2 'psim: *how long*' psim slices --model gpt2 --pp 2
expect 2 'psim: --pp is missing*' psim slices --model gpt2 --cluster v100-dgx1
expect 2 'psim: --pp 13: *12 layers*' psim slices --model gpt2 --pp 13 --cluster v100-dgx1:2
expect 2 'psim: *has 8 devices*' psim slices --model gpt2 --pp 12 --cluster v100-dgx1
expect 2 'psim: --latency c=4,x=3: *' psim slices --latency c=4,x=3 --pp 2 --seq-len 64
expect 2 'psim: --slices is missing*' psim slices --method equal-flops --model gpt2
expect 2 'psim: *fewer --slices' psim slices --method equal-flops --slices 3 --seq-len 2 --model gpt2
expect 2 'psim: 9 slices*' psim slices --method equal-time --slices 9 --seq-len 64 --latency i=1
expect 2 'psim: *does not divide*' psim slices --pp 4 --granularity 7 --latency i=1 --seq-len 64
expect 2 'psim: --slices 3: *' psim slices --pp 4 --slices 3 --latency i=1 --seq-len 64
expect 2 'psim: --factorisations 999: *' psim slices --factorisations 999 --model gpt2 --cluster v100-dgx1
expect 2 'psim: *leave them out' psim slices --factorisations 8 --pp 2 --model gpt2 --cluster v100-dgx1

# --- the schedules ---
run="psim run --pp 4 --microbatches 4 --json"
expect 0 '' $run --schedule seq1f1b --slice-tokens 1,2,3,4 --times F=10,B=20
says '*"step_ns":210000000,*'
expect 0 '' $run --schedule seq1f1b --slices 4 --times F=10,B=20
says '*"step_ns":142500000,*"peak_activations":1.75}*'
expect 0 '' $run --schedule seq1f1b-i --slices 2 --chunks 2 --opt group=narrow --times F=4,B=8
says '*"step_ns":57000000,*"peak_activations":3}*'
expect 0 '' $run --schedule seq1f1b-zb --slices 2 --times F=2,I=2,W=2
says '*"step_ns":27000000,*"peak_activations":2.5}*'
expect 2 'psim: *legal: --opt group=safe' $run --schedule seq1f1b-i --slices 3 --opt group=narrow \
    --times F=1,B=2
expect 2 'psim: *must add up to --seq-len' psim run --pp 2 --microbatches 2 --schedule terapipe \
    --slice-tokens 10,20 --model tiny-gpt2 --cluster h100-dgx

# --- together with uneven layers, recompute, tensor parallelism ---
both="psim run --schedule seq1f1b --slice-tokens 30,20,14 --pp 2 --microbatches 3 --model tiny-llama"
both="$both --seq-len 64 --layers 3,5 --cluster h100-dgx --json"
expect 0 '' $both
plain=$(sed 's/.*"step_ns":\([0-9]*\).*/\1/' "$work/.stdout")
expect 0 '' $both --recompute full
[ "$(sed 's/.*"step_ns":\([0-9]*\).*/\1/' "$work/.stdout")" -gt "$plain" ] || complain "recompute is free"
expect 0 '' $both --tp 2
[ "$(sed 's/.*"step_ns":\([0-9]*\).*/\1/' "$work/.stdout")" -ne "$plain" ] || complain "tp changes nothing"
finish
