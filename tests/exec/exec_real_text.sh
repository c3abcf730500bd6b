#!/bin/sh
# exec_real_text.sh BIN: a GPT of bytes learns Shakespeare, on one rank and on four; the schedule
# changes no digit of the curves and no bit of the weights.
# tinyshakespeare.txt is looked for in $TANDEM_DATA, then beside the source folder.
set -u
PATH=$1:$PATH
text=${TANDEM_DATA:-../shared/data}/tinyshakespeare.txt
if [ ! -r "$text" ]; then
    echo "skipped: no $text; set TANDEM_DATA to its folder"
    exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0

cat >"$work/config.json" <<'CONFIG'
{"model_type": "gpt2", "n_layer": 4, "n_embd": 64, "n_head": 4, "n_positions": 64,
 "vocab_size": 256, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new"}
CONFIG

# train NAME OPTION...: the curve goes to NAME.curve, losses to NAME.json, weights to NAME.weights
train() {
    name=$1
    shift
    pexec train --model "$work/config.json" --microbatches 4 --micro-batch 2 --seq-len 64 \
        --data "$text" --steps 500 --lr 4e-3 --warmup 40 --val-every 100 --val-batches 40 --json \
        --out "$work/$name.weights" "$@" >"$work/$name.json" 2>"$work/$name.log" || {
        cat "$work/$name.log"
        bad=1
    }
    sed -n 's/^\(step .*validation [0-9.]*\) .*/\1/p' "$work/$name.log" >"$work/$name.curve"
    tr ',' '\n' <"$work/$name.json" | grep 'loss' >>"$work/$name.curve"
}

train one --schedule 1f1b --pp 1
train 1f1b --schedule 1f1b --pp 4
# six of the eight stages hold something: the ends, and four layers
train interleaved --schedule interleaved-1f1b --pp 4 --chunks 2 --layout 'E|t||t|t||t|L'

cat "$work/one.curve"
[ "$(wc -l <"$work/one.curve")" -eq 6 ] || { echo "the curve has not six points"; bad=1; }
for other in 1f1b interleaved; do
    diff "$work/one.curve" "$work/$other.curve" || { echo "$other: another curve"; bad=1; }
    cmp "$work/one.weights" "$work/$other.weights" || { echo "$other: other weights"; bad=1; }
done
# the byte before tells all but 2.45 nats of the next (conditional entropy of byte pairs in this
# text): a model that reads no further cannot get below, and one that sees its target falls to 0
awk -F'[:,]' '/validation_loss/ { v = $2; exit !(v > 1.8 && v < 2.44) }' "$work/one.curve" ||
    { echo "the validation loss is not what such a model learns"; bad=1; }
exit $bad
