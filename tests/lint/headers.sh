#!/bin/sh
# headers.sh COMPILER: each header compiles alone and twice, and its guard is named after its path.
set -u
cc=$1
bad=0
flags=$(pkg-config --cflags jansson cairo 2>/dev/null)
# kernels/bod*.h are bodies of code, compiled once for each instruction set.
headers=$(find base costmodel schedules kernels sim exec viz -name "*.h" ! -path "kernels/bod*" \
    2>/dev/null | sort)
for header in $headers; do
    # shellcheck disable=SC2086 # flags are words
    printf '#include "%s"\n#include "%s"\nextern int nothing_else;\n' "$header" "$header" |
        "$cc" -std=c11 -D_POSIX_C_SOURCE=200809L -D_DEFAULT_SOURCE -I. $flags -Wall -Wextra \
            -Wpedantic -Werror -fsyntax-only -xc - || { echo "$header: does not stand alone"; bad=1; }
    guard=$(echo "$header" | tr 'a-z/.' 'A-Z__')
    grep -q "^#ifndef $guard\$" "$header" || { echo "$header: the guard is not $guard"; bad=1; }
done
exit $bad
