#!/bin/sh
# consumer.sh COMPILER BUILD_DIR: a foreign program builds and runs against the install tree, also
# after the tree has been moved. The tree holds no header of what is inside, and none that needs one.
set -eu
cc=$1 build=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cmake --install "$build" --prefix "$work/first" >/dev/null
mv "$work/first" "$work/moved"
pc=$(find "$work/moved" -name tandem.pc)
PKG_CONFIG_PATH=$(dirname "$pc")
export PKG_CONFIG_PATH
# shellcheck disable=SC2046 # flags are words
"$cc" -std=c11 tests/lint/consumer/main.c $(pkg-config --cflags --libs tandem) -o "$work/consumer"
"$work/consumer"
inside=$(find "$work/moved" -name "*_inside.h" -o -name "*_internal.h" -o -name psim.h)
[ -z "$inside" ] || { echo "installed: $inside"; exit 1; }
cd "$work/moved/include/tandem"
find . -name "*.h" ! -path "./kernels/cuda/*" | sed 's/.*/#include "&"/' >"$work/all.c"
# shellcheck disable=SC2046 # flags are words
"$cc" -std=c11 -D_POSIX_C_SOURCE=200809L -I. $(pkg-config --cflags tandem) -fsyntax-only "$work/all.c"
for program in psim pexec; do
    [ ! -x "$build/bin/$program" ] || "$work/moved/bin/$program" --version >/dev/null
done
