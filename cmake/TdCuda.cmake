# Finds a CUDA compiler, or says what to set. TD_HAVE_CUDA tells the folders. There are no .cu files
# yet, so the language is not enabled.
set(TD_HAVE_CUDA 0)
if(NOT TD_CUDA MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "tandem: TD_CUDA is '${TD_CUDA}'; it is AUTO, ON or OFF")
endif()
if(NOT TD_CUDA STREQUAL "OFF")
    include(CheckLanguage)
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
        set(TD_HAVE_CUDA 1)
    elseif(TD_CUDA STREQUAL "ON")
        message(FATAL_ERROR "tandem: TD_CUDA=ON but no CUDA compiler was found; set the environment "
                            "variable CUDACXX or -DCMAKE_CUDA_COMPILER=/path/to/nvcc, or use "
                            "-DTD_CUDA=AUTO to build without it")
    endif()
endif()
target_compile_definitions(td_options INTERFACE TD_HAVE_CUDA=${TD_HAVE_CUDA})
