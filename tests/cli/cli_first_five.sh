#!/bin/sh
# cli_first_five.sh BIN: a new user's first commands, each of which has to work as pasted.
set -u
PATH=$1:$PATH
. tests/cli/expect.sh

first="--schedule 1f1b --pp 4 --microbatches 8"
# shellcheck disable=SC2086
{
expect 0 '' psim list
expect 0 '*' psim run $first --times F=1,B=2 --trace "$work/predicted.json" -o "$work/run.svg"
says '*27.3*'
expect 0 '*' pexec check $first --model tiny-gpt2 --micro-batch 1 --seq-len 16
cat README.md CONTRIBUTING.md LICENSE >"$work/text.txt"
expect 0 '*' pexec train $first --model tiny-gpt2 --micro-batch 1 --seq-len 16 --steps 3 \
    --data "$work/text.txt" --trace "$work/measured.json"
expect 0 '*' psim draw "$work/predicted.json" "$work/measured.json" -o "$work/both.svg"
}
for file in predicted.json measured.json run.svg both.svg; do
    [ -s "$work/$file" ] || complain "$file was not written"
done
grep -q '</svg>' "$work/both.svg" || complain "the figure is not whole"
# the examples of the help texts work as they stand
for verb in list schedule check plan run; do
    example=$(psim "$verb" --help | sed -n '/^Example:/{n;s/^  //p;}')
    n=$((n + 1))
    (cd "$work" && timeout 60 sh -c "$example" >/dev/null 2>.stderr) || complain "example: $example"
done
finish
