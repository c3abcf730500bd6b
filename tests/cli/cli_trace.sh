#!/bin/sh
# cli_trace.sh BIN: traces keep the rules of the format that they are written in, whatever the plan;
# figures say what their memory is counted in.
set -u
PATH=$1:$PATH
. tests/cli/expect.sh
cd "$work" || exit 1

kept() { # kept ARGUMENT...: the trace of this run
    expect 0 '' psim run "$@" --trace trace.json
    expect 0 '' trace_rules trace.json
}

kept 1f1b --pp 4 --microbatches 8 --times F=1,B=2,comm=0.3
kept interleaved-1f1b --pp 4 --microbatches 8 --chunks 2 --times F=1,B=2,comm=1.7 --send-window 3
kept gpipe --pp 3 --microbatches 5 --model tiny-gpt2 --layers 1,6,1 --cluster a100-dgx --memory
kept dualpipe --pp 4 --microbatches 8 --times F=1,B=2,comm=0.3 --mapping single \
    --protocol rendezvous
kept vocab-2 --pp 4 --microbatches 8 --times F=1,B=2,S=1,T=1,E=0.1,G=0.1,coll=0.1
kept fbd --pp 4 --microbatches 8 --times F=1,B=2,comm=0.3
kept seq1f1b-zb --pp 3 --microbatches 4 --slices 3 --times F=1,I=1,W=1,comm=0.01
kept 1f1b --pp 2 --microbatches 4 --model gpt3-175b --cluster a100-dgx:8 --tp 4 --dp 2 --shards
kept 1f1b --pp 2 --microbatches 4 --post-validation --periods 3 --times F=1,B=2

# what a checker of rules must see: a slice moved into its neighbour, an arrow back in time
psim run 1f1b --pp 2 --microbatches 2 --times F=1,B=2,comm=1 --trace good.json -q >/dev/null
sed '/"ph":"X"/s/"dur":2000/"dur":2001/' good.json >overlap.json
sed '/"ph":"f"/s/"ts":[0-9.]*/"ts":0/' good.json >back.json
sed '/"ph":"M"/s/thread_name/thread_sort_index/' good.json >nameless.json
for file in overlap back nameless; do
    cmp -s good.json $file.json && complain "$file.json is the good one"
    trace_rules $file.json >.stdout 2>.stderr && complain "$file.json passes"
    n=$((n + 1))
done

# without a model memory is counted in activations
expect 0 '' psim draw good.json --memory -o unit.svg
grep -q '>2 act\.<' unit.svg || complain "no activations in unit.svg"
expect 0 '' psim run 1f1b --pp 2 --microbatches 2 --model tiny-gpt2 --cluster a100-dgx --memory \
    -o bytes.svg
grep -q '[0-9] MiB<' bytes.svg || complain "no bytes in bytes.svg"

finish
