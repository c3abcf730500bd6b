#!/bin/sh
# At most 500 lines a file and 100 columns a line; file names are unique in the tree.
set -u
bad=0
sources=$(find base costmodel schedules kernels sim exec viz tests -name '*.[ch]' -o -name '*.cu' | sort)
for file in $sources; do
    lines=$(wc -l <"$file")
    [ "$lines" -le 500 ] || { echo "$file: $lines lines, over 500"; bad=1; }
    LC_ALL=C.UTF-8 awk -v file="$file" '
        length($0) > 100 { print file ":" NR ": " length($0) " columns, over 100"; bad = 1 }
        /\t/ { print file ":" NR ": a tab"; bad = 1 }
        / $/ { print file ":" NR ": a blank at the end"; bad = 1 }
        END { exit bad }' "$file" || bad=1
done
twice=$(for file in $sources; do echo "${file##*/}"; done | sort | uniq -d)
[ -z "$twice" ] || { echo "file names used twice: $twice"; bad=1; }
exit $bad
