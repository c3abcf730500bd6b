# One INTERFACE target carries the flags of all our C code; CMAKE_C_FLAGS stays the user's own.
add_library(td_options INTERFACE)
target_include_directories(td_options INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_definitions(td_options INTERFACE _POSIX_C_SOURCE=200809L _DEFAULT_SOURCE
                           TD_VERSION="${PROJECT_VERSION}")

set(td_warnings -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wstrict-prototypes
    -Wmissing-prototypes -Wvla -Wwrite-strings -Wdouble-promotion -Wformat=2)
if(TD_WERROR)
    list(APPEND td_warnings -Werror)
endif()

# Contraction changes the last bit of a result from compiler to compiler; kernels that want fused
# multiply-add ask for it by name.
set(td_code_flags -ffp-contract=off)
set(td_link_flags "")
if(TD_SANITIZE)
    list(APPEND td_code_flags -fsanitize=${TD_SANITIZE} -fno-omit-frame-pointer
         -fno-sanitize-recover=all)
    list(APPEND td_link_flags -fsanitize=${TD_SANITIZE})
endif()

foreach(flag IN LISTS td_warnings td_code_flags)
    target_compile_options(td_options INTERFACE $<$<COMPILE_LANGUAGE:C>:${flag}>)
endforeach()
target_link_options(td_options INTERFACE ${td_link_flags})

# libFuzzer needs every module instrumented, the targets themselves linked with its main.
if(TD_FUZZ)
    if(NOT CMAKE_C_COMPILER_ID MATCHES "Clang")
        message(FATAL_ERROR "tandem: TD_FUZZ needs clang; set CC=clang, or use the preset fuzz")
    endif()
    target_compile_options(td_options INTERFACE -fsanitize=fuzzer-no-link)
endif()
