#!/bin/sh
# At most 500 lines a file and 100 columns a line; file names are unique in the tree.
set -u
bad=0
sources=$(find base costmodel schedules kernels sim exec viz tests -name '*.[ch]' -o -name '*.cu' \
    -o -name '*.cuh' -o -name '*.cc' | sort)
for file in $sources; do
    lines=$(wc -l <"$file")
    [ "$lines" -le 500 ] || { echo "$file: $lines lines, over 500"; bad=1; }
    # grep, because not every awk counts characters
    LC_ALL=C.UTF-8 grep -nHE '^.{101,}' "$file" && { echo "  is over 100 columns"; bad=1; }
    grep -nHE "$(printf '\t')| \$" "$file" && { echo "  holds a tab, or ends in a blank"; bad=1; }
done
twice=$(for file in $sources; do echo "${file##*/}"; done | sort | uniq -d)
[ -z "$twice" ] || { echo "file names used twice: $twice"; bad=1; }
exit $bad
