# Sourced by the tests of command lines.
#   expect CODE GLOB COMMAND...   the command exits with CODE, and stderr is one line that matches GLOB
#                                 (nothing at all where GLOB is empty). A refusal leaves stdout empty.
# Scratch files belong in $work, which is also the current folder's place for outputs.
bad=0 n=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

complain() {
    bad=$((bad + 1))
    echo "FAILED: $*"
    sed 's/^/  stderr: /' "$work/.stderr"
}

expect() {
    code=$1 glob=$2
    shift 2
    n=$((n + 1))
    got=0
    timeout 60 "$@" >"$work/.stdout" 2>"$work/.stderr" </dev/null || got=$?
    [ "$got" -eq "$code" ] || { complain "exit $got instead of $code: $*"; return 0; }
    if [ -z "$glob" ]; then
        [ ! -s "$work/.stderr" ] || complain "talks on stderr: $*"
        return 0
    fi
    # shellcheck disable=SC2254 # a pattern on purpose
    case "$(cat "$work/.stderr")" in
    $glob) ;;
    *) complain "stderr is not like '$glob': $*" ;;
    esac
    [ "$code" -eq 0 ] || [ "$(wc -l <"$work/.stderr")" -eq 1 ] || complain "not one line: $*"
    [ "$code" -ne 2 ] || [ ! -s "$work/.stdout" ] || complain "a refusal prints on stdout: $*"
}

# says GLOB: stdout of the last command matches.
says() {
    # shellcheck disable=SC2254
    case "$(cat "$work/.stdout")" in
    $1) ;;
    *) complain "stdout is not like '$1'"; head -n 5 "$work/.stdout" ;;
    esac
}

absent() { [ ! -e "$1" ] || complain "$1 was written"; }

finish() {
    echo "$n command lines, $bad wrong"
    [ "$bad" -eq 0 ]
}
