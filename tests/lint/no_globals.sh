#!/bin/sh
# no_globals.sh ARCHIVE...: no module defines a writable object. Tables that the loader relocates
# and then protects (.data.rel.ro) are constant.
set -u
bad=0
[ $# -gt 0 ] || { echo "no archives given"; exit 1; }
for archive; do
    found=$(objdump -t "$archive" | awk '
        / O / || /\.t(bss|data)/ || /\*COM\*/ {
            for (i = 1; i <= NF; i++)
                if ($i ~ /^\.(data|bss|tdata|tbss)/ && $i !~ /^\.data\.rel\.ro/ || $i == "*COM*")
                    if ($NF !~ /^\.(data|bss|tdata|tbss)/) print $i, $NF
        }')
    if [ -n "$found" ]; then
        echo "$archive has writable globals:"
        echo "$found"
        bad=1
    fi
done
exit $bad
