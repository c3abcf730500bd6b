#!/bin/sh
# Words and calls that do not belong: notes to oneself, output and exits below the programs, memory
# outside base.c.
set -u
bad=0

# forbid RULE PATTERN FILE...: lines of code (comment lines apart) that match.
forbid() {
    rule=$1 pattern=$2
    shift 2
    [ $# -gt 0 ] || return 0
    found=$(grep -nHE "$pattern" "$@" /dev/null | grep -vE '^[^:]*:[0-9]+:[[:space:]]*(/?\*|//)')
    [ -z "$found" ] || { echo "$rule:"; echo "$found"; bad=1; }
}

folders="base costmodel schedules kernels sim exec viz"
notes='(TO''DO|FIX''ME|HA''CK|XX''X)'
found=$(grep -rnwE "$notes" $folders tests scripts cmake CMakeLists.txt .ci 2>/dev/null)
[ -z "$found" ] || { echo "notes to oneself:"; echo "$found"; bad=1; }

below=$(find $folders -name '*.[ch]' ! -name psim.c ! -name pexec.c ! -name 'cmd_*.c' \
    ! -name 'cli*.c' 2>/dev/null)
# shellcheck disable=SC2086 # lists of names without blanks
forbid "output or exit below the programs" \
    '(^|[^_[:alnum:]])((printf|puts|putchar|perror|exit|_exit|abort)\(|fprintf\((stdout|stderr))' $below
heap=$(find $folders -name '*.[ch]' ! -path base/base.c ! -name psim.c ! -name pexec.c \
    ! -name 'cmd_*.c' 2>/dev/null)
# shellcheck disable=SC2086
forbid "memory outside base.c" '(^|[^_[:alnum:]>.])(malloc|calloc|realloc|free)\(' $heap
exit $bad
