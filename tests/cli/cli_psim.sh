#!/bin/sh
# cli_psim.sh BIN: what psim answers to right and wrong command lines.
set -u
PATH=$1:$PATH
. tests/cli/expect.sh

# --- manners ---
expect 0 '' psim
says '*psim help*'
expect 0 '' psim --version
says 'psim [0-9]*'
expect 0 '' psim help
expect 0 '' psim help --man
says '.TH psim*'
expect 0 '' psim help --completions bash
bash -n "$work/.stdout" 2>/dev/null || complain "the completions are no bash"
for verb in list schedule check plan run sweep compare draw calibrate; do
    expect 0 '' psim "$verb" --help
    says "Usage: psim $verb*Example:*psim *Exit codes:*"
    [ "$(awk 'length($0) > 80' "$work/.stdout" | grep -vc '^  psim')" -eq 0 ] ||
        complain "psim $verb --help is wider than 80"
done
expect 2 "psim: *did you mean run?" psim rnu
expect 2 'psim: *--schedule?*' psim run --schedul 1f1b
expect 2 'psim: *--pp*' psim run --pp

# --- right ---
expect 0 '' psim list
says '*gpipe*1f1b*interleaved-1f1b*'
expect 0 '' psim run --schedule 1f1b --pp 4 --microbatches 8 --times F=1,B=2 --json
says '{*"schema":*"step_ns":*33000000*"bubble_frac":*"per_rank":*}*'
expect 0 '' psim run --schedule gpipe --pp 4 --microbatches 8 --times F=1,B=2 --json
says '*"step_ns":*33000000*'
cp "$work/.stdout" "$work/first"
expect 0 '' psim run --schedule gpipe --pp 4 --microbatches 8 --times F=1,B=2 --json
cmp -s "$work/first" "$work/.stdout" || complain "two equal runs print different bytes"
expect 0 '' psim run --schedule interleaved-1f1b --pp 4 --microbatches 8 --chunks 2 --times F=1,B=2 \
    --json
says '*"step_ns":28500000,*_activations":5.5}*_activations":4.5}*_activations":3.5}*_activations":2.5}*'
expect 0 '' psim run --schedule interleaved-1f1b --pp 4 --microbatches 10 --chunks 2 \
    --times F=1,B=2 --json
says '*"step_ns":34500000,*_activations":6}*_activations":5}*_activations":4}*_activations":3}*'
expect 0 '' psim run --schedule interleaved-1f1b --pp 2 --microbatches 5 --chunks 2 --opt group=3 \
    --times F=1,B=2 --json
says '*"step_ns":16500000,*'
expect 0 '' psim run --schedule 1f1b --pp 8 --microbatches 64 --times F=1,B=2,comm=0.1 --json
says '*"step_ns":225400000,*'

# --- names that do not exist ---
unit="--times F=1,B=2"
# shellcheck disable=SC2086
{
expect 2 'psim: *did you mean ?1f1b??*' psim run --schedule 1fb1 --pp 4 --microbatches 8 $unit
expect 2 'psim: *did you mean ?gpipe??*' psim run --schedule gpip --pp 4 --microbatches 8 $unit
expect 2 'psim: *did you mean ?gpt3-175b??*' psim run --schedule 1f1b --pp 4 --microbatches 8 \
    --model gpt3-175 --cluster a100-dgx
expect 2 'psim: *did you mean ?a100-dgx??*' psim run --schedule 1f1b --pp 4 --microbatches 8 \
    --model gpt3-175b --cluster a100-dgz
expect 2 'psim: *' psim run --schedule 1f1b --pp 4 --microbatches 8 $unit --opt nonsense=1

# --- sizes that are impossible ---
expect 2 'psim: *' psim run --schedule 1f1b --pp 0 --microbatches 8 $unit
expect 2 'psim: *' psim run --schedule 1f1b --pp 4 --microbatches 0 $unit
expect 2 'psim: *' psim run --schedule 1f1b --pp 4 --microbatches 99999999999999999999 $unit
# refused before any of it is built; the limit keeps a psim that tries from taking the machine
[ -n "${TD_SANITIZED:-}" ] || expect 2 'psim: *' sh -c "ulimit -v 4000000
    exec psim run --schedule 1f1b --pp 65535 --microbatches 16777216 $unit"
expect 2 'psim: *' psim run --schedule interleaved-1f1b --pp 4 --microbatches 8 --chunks 0 $unit
expect 2 'psim: *layers*' psim run --schedule 1f1b --pp 7 --microbatches 8 --model gpt3-175b \
    --cluster a100-dgx --layers 1,2,3
expect 2 'psim: *' psim run --schedule 1f1b --pp 200 --microbatches 8 --model gpt3-175b \
    --cluster a100-dgx:100
expect 2 'psim: *' psim run --schedule 1f1b --pp 4 --microbatches 8
expect 2 'psim: *' psim run --schedule 1f1b --pp 4 --microbatches 8 --times F=one,B=2
expect 2 'psim: *' psim run --schedule 1f1b --pp 4 --microbatches 8 --times F=-1,B=2
expect 2 'psim: *' psim run --schedule 1f1b --pp 4 --microbatches 8 --times Q=1
}

# --- files that are broken ---
# shellcheck disable=SC2086
{
expect 2 'psim: *no-such-file*' psim check "$work/no-such-file.csv"
expect 0 '' psim schedule 1f1b --pp 2 --microbatches 2
cp "$work/.stdout" "$work/good.csv"
expect 0 '' psim check "$work/good.csv"
sed 's/,0B1//' "$work/good.csv" >"$work/missing.csv"
expect 1 'psim: *' psim check "$work/missing.csv"
sed 's/0F1/0F0/' "$work/good.csv" >"$work/doubled.csv"
expect 1 'psim: *' psim check "$work/doubled.csv"
sed 's/0F1/0Q1/' "$work/good.csv" >"$work/letter.csv"
expect 2 'psim: *letter.csv:[0-9]*:[0-9]*: *' psim check "$work/letter.csv"
# a mark that editors leave before a text is none of it; a header means one thing, of one version
printf '\357\273\277"",0F0,0B0\r\n1F0,1B0\r\n' >"$work/marked.csv"
expect 0 '' psim check "$work/marked.csv"
sed 's/^# stages.*/&\n&/' "$work/good.csv" >"$work/twice.csv"
expect 2 'psim: *twice.csv:3:1: given twice' psim check "$work/twice.csv"
sed 's/schedule 1/schedule 2/' "$work/good.csv" >"$work/version.csv"
expect 2 'psim: *version.csv:1:1: *version*' psim check "$work/version.csv"
printf '\357\273\277{"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_head": 2,
    "n_positions": 8, "vocab_size": 9}' >"$work/marked.json"
expect 0 '' psim run --schedule 1f1b --pp 2 --microbatches 2 -q --model "$work/marked.json" \
    --cluster a100-dgx
expect 2 'psim: rank 0: *GiB*more --pp*' psim run --schedule 1f1b --pp 1 --microbatches 1 \
    --model gpt3-175b --cluster a100-dgx
printf '0B0,0F0\n1F0,1B0\n' >"$work/order.csv"
expect 1 'psim: *deadlock*waits for*F0, which is behind*B0' psim check "$work/order.csv"
expect 2 'psim: --pp 4: *2 rows' psim run --schedule "$work/good.csv" --pp 4 $unit
expect 0 '' psim plan --schedule 1f1b --pp 2 --microbatches 2
cp "$work/.stdout" "$work/good.plan"
sed '0,/bytes=[0-9]*/s//bytes=-5/' "$work/good.plan" >"$work/negative.plan"
expect 1 'psim: *less than no bytes' psim check "$work/negative.plan"
head -c 700 "$work/good.plan" >"$work/cut.plan"
expect 2 'psim: *cut.plan:[0-9]*:[0-9]*: *' psim check "$work/cut.plan"
expect 1 'psim: *over the limit of 1 B*' psim run --plan "$work/good.plan" $unit --memory-limit 1
printf '{"model_type": "gpt2", "n_layer": ' >"$work/cut.json"
expect 2 'psim: *cut.json:[0-9]*:[0-9]*: *' psim run --schedule 1f1b --pp 2 --microbatches 2 \
    --model "$work/cut.json" --cluster a100-dgx
printf '{"traceEvents": [' >"$work/cut-trace.json"
expect 2 'psim: *cut-trace.json*' psim draw "$work/cut-trace.json" -o "$work/cut.svg"
absent "$work/cut.svg"

# --- outputs that cannot be ---
expect 3 'psim: *no-folder*' psim run --schedule 1f1b --pp 2 --microbatches 2 $unit \
    -o "$work/no-folder/figure.svg"
expect 3 'psim: *no-folder*' psim run --schedule 1f1b --pp 2 --microbatches 2 $unit \
    --trace "$work/no-folder/trace.json"
expect 2 'psim: *' psim run --schedule 1f1b --pp 2 --microbatches 2 $unit -o "$work/figure.xyz"
absent "$work/figure.xyz"
# nothing is written where another output cannot be, and never over what is read
expect 3 'psim: *no-folder*' psim run --schedule 1f1b --pp 2 --microbatches 2 $unit \
    --trace "$work/early.json" -o "$work/no-folder/figure.svg"
absent "$work/early.json"
expect 0 '' psim schedule 1f1b --pp 2 --microbatches 2 -o "$work/own.csv"
cp "$work/own.csv" "$work/own-before.csv"
ln -s own.csv "$work/own-link.csv"
expect 2 'psim: --output *own-link.csv: --schedule names the same file*' \
    psim run --schedule "$work/own.csv" $unit -o "$work/own-link.csv"
expect 2 'psim: --output *own.csv: this is read*' psim schedule "$work/own.csv" -o "$work/own.csv"
cmp -s "$work/own.csv" "$work/own-before.csv" || complain "an input was written over"
n=$((n + 1))
}

expect 2 'psim: *own.csv:*no plan; --schedule*' psim run --plan "$work/own.csv" $unit

# --- names of other programs ---
expect 2 'psim: *--pipeline-model-parallel-size; did you mean --pp[?]' psim run 1f1b \
    --pipeline-model-parallel-size 4
expect 2 'psim: *--num_microbatches; did you mean --microbatches[?]' psim run 1f1b \
    --num_microbatches=4
if [ -e /dev/full ]; then
    # a device is written, never replaced: through a link, so that a mistake costs only the link
    ln -s /dev/full "$work/full.json"
    # shellcheck disable=SC2086
    expect 3 'psim: *full.json: cannot write: *' psim run --schedule 1f1b --pp 2 --microbatches 2 \
        $unit --trace "$work/full.json"
    [ -c "$work/full.json" ] || complain "a device was replaced"
    n=$((n + 1))
    psim list >/dev/full 2>"$work/.stderr"
    [ $? -eq 3 ] || complain "a full disk is not noticed"
fi

# --- memory: who is over the limit, and by how much ---
expect 1 'psim: *rank 7 needs*over the limit of 80.0 GiB*8 of 8 ranks*' psim run --schedule gpipe --pp 8 --microbatches 64 --model gpt3-175b \
    --cluster a100-dgx --memory-limit 80GiB

# --- sweep: a row each, rows that cannot be say why ---
# shellcheck disable=SC2086
{
expect 0 '' psim sweep --schedule 1f1b,bitpipe,chimera:f=2,interleaved-1f1b:chunks=4 --pp 8 \
    --microbatches 8,12 $unit
says '*1f1b *8 *45.0 ms*bitpipe *8 *30.0 ms*chimera:f=2 *8 *28.0 ms*bitpipe *12 *legal: 8 or 16*'
[ "$(wc -l <"$work/.stdout")" -eq 10 ] || complain "not a line each for 8 rows"
expect 0 '' psim sweep --schedule 1f1b --pp 2,4 --microbatches 8 --recompute none,full $unit --json
says '{*"pp":2,"recompute":"none"*"step_ns":27000000*"pp":4,"recompute":"full"*"step_ns":44000000*}'
expect 0 '' psim sweep --schedule 1f1b,bitpipe --pp 4 --microbatches 4 $unit -o "$work/two.svg"
grep -q 'bitpipe' "$work/two.svg" || complain "the figure does not name its panels"
expect 2 'psim: *--pp: *' psim sweep --schedule 1f1b --pp 2,x --microbatches 8 $unit
expect 2 'psim: *--schedule*' psim sweep --pp 2,4 --microbatches 8 $unit
expect 2 'psim: *legal: 4 or 8*' psim sweep --schedule bitpipe --pp 4 --microbatches 5,6 $unit
expect 2 'psim: *KEY=VALUE*' psim sweep --schedule bitpipe:sync --pp 4 --microbatches 4 $unit
expect 2 'psim: *no such option*' psim sweep --schedule bitpipe:f=2 --pp 4 --microbatches 4 $unit
expect 2 'psim: *--pp: *' psim run --schedule 1f1b --pp 2,4 --microbatches 8 $unit
}

# --- bidirectional schedules by name ---
expect 0 '' psim run dualpipe --pp 8 --microbatches 16 --times F=2,B=4 --pair-frac 0.75 --json
says '*"step_ns":93000000,*"pair_frac":0.75,*'
expect 2 'psim: *--pair-frac*' psim run dualpipe --pp 2 --microbatches 4 --times F=2,B=4 --pair-frac 0
expect 0 '' psim run bitpipe --pp 8 --microbatches 8 --model bert-64 --cluster a100-dgx:4 --dp 4 \
    --placement folded --json
says '*"placement":"folded"*'
expect 0 '' psim run bitpipe --pp 4 --microbatches 4 --times F=1,B=2 --json
says '*"pipes":2,*"step_ns":14000000,*"messages":48,*'
expect 0 '' psim run dualpipev --pp 4 --microbatches 10 --times F=1,B=2,FB=2.5 --json
says '*"step_ns":29500000,*'
expect 0 '' psim run bitpipe --pp 8 --microbatches 8 --times F=2,B=4,coll=1 --opt sync=end --json
says '*"step_ns":64000000,*'
# every message waits until it is wanted: the authors' blocking exchanges, chunk F=1, B=2, comm=0.1
for case in 4:4:29600000 4:8:57000000 8:8:63600000 8:16:120600000; do
    p=${case%%:*} m=${case#*:}
    expect 0 '' psim run --schedule bitpipe --pp "$p" --microbatches "${m%:*}" \
        --times F=2,B=4,comm=0.1 --protocol rendezvous --json
    says "*\"step_ns\":${case##*:},*"
done

finish
