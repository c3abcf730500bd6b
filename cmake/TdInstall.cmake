# Headers under include/tandem, one libtandem of all modules (without those that need GSL), and a
# relocatable tandem.pc. Headers that only one folder or the verbs of a program share stay at home.
set(td_inside ".*_(inside|internal|parts)|bod[a-z_]*|psim|psim_viz|pexec|bench|slices")
get_property(td_modules GLOBAL PROPERTY TD_MODULES)
if(td_modules)
    set(td_objects "")
    foreach(module IN LISTS td_modules)
        list(APPEND td_objects $<TARGET_OBJECTS:${module}>)
    endforeach()
    add_library(tandem STATIC ${td_objects})
    set_target_properties(tandem PROPERTIES LINKER_LANGUAGE C)
    install(TARGETS tandem ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()

foreach(folder IN LISTS TD_FOLDERS)
    if(EXISTS ${PROJECT_SOURCE_DIR}/${folder})
        install(DIRECTORY ${PROJECT_SOURCE_DIR}/${folder}
                DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/tandem
                FILES_MATCHING PATTERN "*.h"
                REGEX "/(${td_inside})\\.h$" EXCLUDE)
    endif()
endforeach()

set(td_pc_requires "jansson zlib")
foreach(pair "CAIRO:cairo" "PCRE2:libpcre2-8" "OPENBLAS:openblas" "MPI:ompi-c")
    string(REPLACE ":" ";" pair ${pair})
    list(GET pair 0 package)
    list(GET pair 1 module)
    if(TD_HAVE_${package})
        string(APPEND td_pc_requires " ${module}")
    endif()
endforeach()
file(RELATIVE_PATH td_pc_up /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
string(REGEX REPLACE "/$" "" td_pc_up ${td_pc_up})
configure_file(${CMAKE_CURRENT_LIST_DIR}/tandem.pc.in ${PROJECT_BINARY_DIR}/tandem.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/tandem.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
