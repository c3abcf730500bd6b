#!/bin/sh
# keep-report.sh COMMAND ... -o OBJECT ...: runs a compiler; what it says goes to OBJECT.report, and
# to stderr only where it failed or warned.
object=
last=
for word; do
    [ "$last" != -o ] || object=$word
    last=$word
done
[ -n "$object" ] || exec "$@"
"$@" 2>"$object.report"
code=$?
[ $code -eq 0 ] && ! grep -q warning "$object.report" || cat "$object.report" >&2
exit $code
