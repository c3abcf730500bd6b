#!/bin/sh
# cli_predict.sh BIN: six schedules on four and on eight ranks. Emulated losses equal those of threads,
# bit for bit; how far emulated steps are from the prediction of a bench is printed, not judged.
set -u
PATH=$1:$PATH
. tests/cli/expect.sh

printf 'To be, or not to be, that is the question. %.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 \
    18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 >"$work/text.txt"
cat >"$work/model.json" <<END
{"model_type": "gpt2", "n_layer": 16, "n_embd": 128, "n_head": 2, "n_positions": 64,
 "vocab_size": 256, "activation_function": "gelu_new"}
END
size="--model $work/model.json --micro-batch 1 --seq-len 32"
train="--data $work/text.txt --steps 7 --quiet --json"
field() { sed -n "s/.*\"$1\": *\([^,}]*\)[,}].*/\1/p" "$work/.stdout" | head -n 1; }

# shellcheck disable=SC2086
{
expect 0 '*' pexec bench $size --budget 20 --tp 1 -o "$work/samples.txt"
expect 0 '' psim calibrate "$work/samples.txt" -o "$work/profile.json"
printf '%-44s %12s %12s\n' "" emulated predicted
for run in "1f1b --pp 4" "1f1b --pp 8" "zb-h1 --pp 4" "zb-h1 --pp 8" "bitpipe --pp 4 --chunks 2" \
    "bitpipe --pp 8 --chunks 2" "seq1f1b --pp 4" "seq1f1b --pp 8" "vocab-2 --pp 4" \
    "vocab-2 --pp 8" "fbd --pp 2" "fbd --pp 4"; do
    what="--schedule $run --microbatches 16 $size"
    expect 0 '' pexec train $what $train
    threads=$(field loss)
    expect 0 '' pexec emulate $what $train --profile "$work/profile.json"
    emulated=$(field median_step_ns)
    n=$((n + 1))
    [ "$(field loss)" = "$threads" ] || complain "$run: loss $(field loss), on threads $threads"
    expect 0 '' psim run $what --dtype fp32 --profile "$work/profile.json" --json
    awk -v run="$run" -v e="$emulated" -v p="$(field step_ns)" 'BEGIN {
        printf "%-44s %9.2f ms %9.2f ms  %+.1f %%\n", run, e / 1e6, p / 1e6, 100 * (p / e - 1)
    }'
done
}
finish
