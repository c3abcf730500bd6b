# Libraries from the system. jansson and zlib are needed by everything that reads or writes files;
# the others switch a feature off when they are absent, and the summary says so.
find_package(PkgConfig REQUIRED)
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)

pkg_check_modules(JANSSON IMPORTED_TARGET jansson>=2.7)
find_package(ZLIB)
if(ZLIB_FOUND)
    add_library(PkgConfig::ZLIB ALIAS ZLIB::ZLIB)
endif()
if(NOT JANSSON_FOUND OR NOT ZLIB_FOUND)
    message(FATAL_ERROR "tandem: jansson and zlib are needed: on Debian or Ubuntu, run "
                        "scripts/setup, or apt-get install libjansson-dev zlib1g-dev")
endif()

# td_optional(NAME module): the switch TD_NAME, ON unless set, says whether to look for it at all.
# TD_HAVE_NAME is a CMake variable for the folders' lists and a definition (0 or 1) for the code.
macro(td_optional package module)
    option(TD_${package} "Use ${package} if it is there" ON)
    set(TD_HAVE_${package} 0)
    if(TD_${package})
        pkg_check_modules(${package} IMPORTED_TARGET ${module})
        if(${package}_FOUND)
            set(TD_HAVE_${package} 1)
        endif()
    endif()
    target_compile_definitions(td_options INTERFACE TD_HAVE_${package}=${TD_HAVE_${package}})
endmacro()

td_optional(CAIRO cairo>=1.16)
td_optional(GSL gsl)
td_optional(PCRE2 libpcre2-8)
td_optional(OPENBLAS openblas)
td_optional(CMOCKA cmocka)
td_optional(MPI ompi-c)
