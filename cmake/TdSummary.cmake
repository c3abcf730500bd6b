# The last lines of a configure run: what this build will be able to do.
function(td_summary_line label have yes no)
    if(have)
        message(STATUS "tandem:   ${label}: ${yes}")
    else()
        message(STATUS "tandem:   ${label}: ${no}")
    endif()
endfunction()

message(STATUS "tandem ${PROJECT_VERSION}, ${CMAKE_BUILD_TYPE}, ${CMAKE_C_COMPILER_ID} "
               "${CMAKE_C_COMPILER_VERSION}")
td_summary_line("cairo" ${TD_HAVE_CAIRO} "PNG and PDF figures" "not found: no PNG and PDF figures")
td_summary_line("GSL" ${TD_HAVE_GSL} "psim calibrate" "not found: no psim calibrate")
td_summary_line("PCRE2" ${TD_HAVE_PCRE2} "GPT-2 tokens" "not found: byte tokens only")
td_summary_line("OpenBLAS" ${TD_HAVE_OPENBLAS} "${OPENBLAS_VERSION}"
                "not found: plain matrix products")
td_summary_line("OpenMPI" ${TD_HAVE_MPI} "ranks as processes (mpirun)"
                "not found: no ranks under mpirun")
td_summary_line("cmocka" ${TD_HAVE_CMOCKA} "unit tests" "not found: no unit tests")
td_summary_line("CUDA" ${TD_HAVE_CUDA} "--backend cuda (TD_CUDA=${TD_CUDA})"
                "none (TD_CUDA=${TD_CUDA})")
td_summary_line("NCCL" ${TD_HAVE_NCCL} "ranks as processes with a GPU each"
                "not found: ranks share one GPU")
if(TD_SANITIZE)
    message(STATUS "tandem:   sanitizers: ${TD_SANITIZE}")
endif()
