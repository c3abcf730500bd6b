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

pkg_check_modules(CAIRO IMPORTED_TARGET cairo>=1.16)
pkg_check_modules(GSL IMPORTED_TARGET gsl)
pkg_check_modules(PCRE2 IMPORTED_TARGET libpcre2-8)
pkg_check_modules(OPENBLAS IMPORTED_TARGET openblas)
pkg_check_modules(CMOCKA IMPORTED_TARGET cmocka)

# TD_HAVE_X is a CMake variable for the folders' lists and a definition (0 or 1) for the code.
foreach(package CAIRO GSL PCRE2 OPENBLAS CMOCKA)
    if(${package}_FOUND)
        set(TD_HAVE_${package} 1)
    else()
        set(TD_HAVE_${package} 0)
    endif()
    target_compile_definitions(td_options INTERFACE TD_HAVE_${package}=${TD_HAVE_${package}})
endforeach()
