#!/bin/sh
# exec_real_text.sh BIN: a GPT and a BERT of bytes learn Shakespeare, on one rank and on four; the
# schedule changes no digit of the curves and no bit of the weights; twins change the last digits.
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

cat >"$work/bert.json" <<'CONFIG'
{"model_type": "bert", "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4,
 "intermediate_size": 256, "max_position_embeddings": 64, "vocab_size": 256}
CONFIG
cat >"$work/gpt.json" <<'CONFIG'
{"model_type": "gpt2", "n_layer": 4, "n_embd": 64, "n_head": 4, "n_positions": 64,
 "vocab_size": 256, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new"}
CONFIG

# train MODEL NAME OPTION...: the curve goes to NAME.curve, losses to NAME.json, weights to
# NAME.weights
train() {
    model=$1
    name=$2
    shift 2
    pexec train --model "$work/$model.json" --microbatches 4 --micro-batch 2 --seq-len 64 \
        --data "$text" --steps 500 --lr 4e-3 --warmup 40 --val-every 100 --val-batches 40 --json \
        --out "$work/$name.weights" "$@" >"$work/$name.json" 2>"$work/$name.log" || {
        cat "$work/$name.log"
        bad=1
    }
    sed -n 's/^\(step .*validation [0-9.]*\) .*/\1/p' "$work/$name.log" >"$work/$name.curve"
    tr ',' '\n' <"$work/$name.json" | grep 'loss' >>"$work/$name.curve"
}

train gpt one --schedule 1f1b --pp 1
train gpt 1f1b --schedule 1f1b --pp 4
# six of the eight stages hold something: the ends, and four layers
train gpt interleaved --schedule interleaved-1f1b --pp 4 --chunks 2 --layout 'E|t||t|t||t|L'

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

train bert bert-one --schedule 1f1b --pp 1 --lr 2e-3
train bert bert-1f1b --schedule 1f1b --pp 4 --lr 2e-3
train bert bert-twins --schedule bitpipe --pp 2 --lr 2e-3
cat "$work/bert-one.curve"
diff "$work/bert-one.curve" "$work/bert-1f1b.curve" || { echo "BERT: another curve"; bad=1; }
cmp "$work/bert-one.weights" "$work/bert-1f1b.weights" || { echo "BERT: other weights"; bad=1; }
# 3.31 nats: what the bytes' frequencies alone tell of a hidden one
for name in bert-one bert-twins; do
    awk -F'[:,]' '/validation_loss/ { exit !($2 > 1.5 && $2 < 3.2) }' "$work/$name.curve" ||
        { echo "$name: the validation loss is not what such a model learns"; bad=1; }
done
exit $bad
