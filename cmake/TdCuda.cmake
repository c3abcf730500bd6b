# CUDA is compiled where a GPU can run it (AUTO), or where it is asked for (ON). TD_HAVE_CUDA tells
# the folders and the code.
set(TD_HAVE_CUDA 0)
if(NOT TD_CUDA MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "tandem: TD_CUDA is '${TD_CUDA}'; it is AUTO, ON or OFF")
endif()
if(TD_CUDA STREQUAL "ON" OR (TD_CUDA STREQUAL "AUTO" AND EXISTS /proc/driver/nvidia/version))
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

if(TD_HAVE_CUDA)
    set(TD_CUDA_ARCHS "80-real;90-real;100-real;100-virtual" CACHE STRING
        "GPU architectures to compile for, as CMAKE_CUDA_ARCHITECTURES")
    set(CMAKE_CUDA_ARCHITECTURES ${TD_CUDA_ARCHS})
    enable_language(CUDA)
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    find_package(CUDAToolkit REQUIRED)
    set(td_cuda_flags -O3 -Xcompiler=-Wall,-Wextra -Xptxas=-v)
    if(TD_WERROR)
        list(APPEND td_cuda_flags --Werror=all-warnings)
    endif()
endif()
