#!/bin/sh
# Every #include "folder/..." follows the arrows between the folders. Programs (psim.c, pexec.c,
# cmd_*.c) may join libraries; a library may not. External libraries stay where they belong.
set -u
bad=0

complain() {
    echo "$1: $2"
    bad=1
}

allowed() {
    case "$1" in
    base) echo "base" ;;
    costmodel) echo "base costmodel" ;;
    schedules) echo "base costmodel schedules" ;;
    kernels) echo "kernels" ;;
    sim) echo "base costmodel schedules sim" ;;
    exec) echo "base costmodel schedules kernels exec" ;;
    viz) echo "base schedules viz" ;;
    esac
}

for folder in base costmodel schedules kernels sim exec viz; do
    [ -d "$folder" ] || continue
    for file in $(find "$folder" -name '*.[ch]' -o -name '*.cu' | sort); do
        name=${file##*/}
        case "$name" in psim.c | pexec.c | cmd_*.c | cmd_*.h) continue ;; esac
        for target in $(sed -n 's/^#include "\(.*\)"/\1/p' "$file"); do
            case " $(allowed "$folder") " in
            *" ${target%%/*} "*) ;;
            *) complain "$file" "includes $target; $folder may include only: $(allowed "$folder")" ;;
            esac
            [ -f "$target" ] || complain "$file" "includes $target, which is not there"
            [ "$folder:$target" != exec:costmodel/cost.h ] ||
                complain "$file" "includes prices; the executor knows sizes only"
        done
        for target in $(sed -n 's/^#include <\(.*\)>/\1/p' "$file"); do
            case "$target:$folder/$name" in
            gsl/*:*/*calibrate*.c | gsl/*:*/*noise*.c | gsl/*:*/*fit*.c) ;;
            gsl/*) complain "$file" "includes $target; GSL stays in the calibrate and noise files" ;;
            cairo*:viz/*) ;;
            cairo*) complain "$file" "includes $target; drawing is viz's" ;;
            cblas.h:kernels/* | openblas*:kernels/*) ;;
            cblas.h:* | openblas*) complain "$file" "includes $target; arithmetic is in kernels" ;;
            esac
        done
    done
done
exit $bad
