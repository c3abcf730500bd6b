#!/bin/sh
# cuda_resources.sh OBJECT...: what the compiler said of the kernels. None spills more than a few
# bytes of registers, and none holds more static shared memory than every device has.
set -u
bad=0
[ $# -gt 0 ] || { echo "no objects given"; exit 1; }
for object; do
    [ -f "$object.report" ] || { echo "$object.report is missing"; exit 1; }
    awk '
        /Compiling entry function/ { name = $0; sub(/^[^\047]*\047/, "", name); sub(/\047.*/, "", name) }
        /bytes spill stores/ {
            if ($5 + 0 > 16) { print name " spills " $5 " bytes"; bad = 1 }
        }
        /Used [0-9]+ registers/ {
            kernels++
            for (i = 2; i <= NF; i++)
                if ($i ~ /^smem/ && $(i - 2) + 0 > 49152) { print name ": " $(i - 2) " smem"; bad = 1 }
        }
        END {
            if (kernels + 0 == 0 && FILENAME !~ /gemm/) { print FILENAME ": no kernels"; bad = 1 }
            exit bad
        }' "$object.report" || bad=1
done
exit $bad
