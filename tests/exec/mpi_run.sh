# mpi_run.sh: what tests of ranks as processes share. Sourced with PATH set to the programs.

# processes N PROGRAM...: the program as N processes. Machines have fewer cores than tests have ranks,
# and containers run as root.
processes() {
    OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 \
        ASAN_OPTIONS="${ASAN_OPTIONS:-}:detect_leaks=0" mpirun -n "$@"
}

if ! command -v mpirun >/dev/null 2>&1; then
    echo "skipped: no mpirun here (OpenMPI is not installed)"
    exit 77
fi
case "${TD_SANITIZED:-}" in
*thread*)
    echo "skipped: OpenMPI is not built for the thread sanitizer"
    exit 77
    ;;
esac
processes 1 pexec check --wire mpi --schedule 1f1b --pp 1 --microbatches 1 --model tiny-gpt2 \
    --micro-batch 1 --seq-len 8 >/tmp/td_mpi_probe.$$ 2>&1 || {
    if grep -q 'this build has no MPI' /tmp/td_mpi_probe.$$; then
        echo "skipped: this build has no MPI"
        rm -f /tmp/td_mpi_probe.$$
        exit 77
    fi
    cat /tmp/td_mpi_probe.$$
    rm -f /tmp/td_mpi_probe.$$
    exit 1
}
rm -f /tmp/td_mpi_probe.$$
