# td_module(name SOURCES a.c ... [DEPS folder ...] [LIBS item ...] [PRIVATE_LIBS item ...]
#           [NOT_IN_LIBTANDEM])
# Static library td_<name> with the alias td::<name>. DEPS are modules of ours, LIBS link items from
# outside. A module that is not there is left out with a message, and the linker names what it lacks.
function(td_module name)
    cmake_parse_arguments(PARSE_ARGV 1 arg "NOT_IN_LIBTANDEM" "" "SOURCES;DEPS;LIBS;PRIVATE_LIBS")
    if(arg_UNPARSED_ARGUMENTS)
        message(FATAL_ERROR "td_module(${name}): unknown words: ${arg_UNPARSED_ARGUMENTS}")
    endif()
    add_library(td_${name} STATIC ${arg_SOURCES})
    add_library(td::${name} ALIAS td_${name})
    target_link_libraries(td_${name} PUBLIC td_options ${arg_LIBS} PRIVATE ${arg_PRIVATE_LIBS})
    td_link(td_${name} PUBLIC ${arg_DEPS})
    if(NOT arg_NOT_IN_LIBTANDEM)
        set_property(GLOBAL APPEND PROPERTY TD_MODULES td_${name})
    endif()
    set_property(GLOBAL APPEND PROPERTY TD_ALL_MODULES td_${name})
endfunction()

# Links our modules by folder name, skipping those that this checkout does not have yet.
function(td_link target visibility)
    foreach(dep IN LISTS ARGN)
        if(TARGET td_${dep})
            target_link_libraries(${target} ${visibility} td_${dep})
        else()
            message(STATUS "tandem: ${target} is built without td_${dep}, which does not exist")
        endif()
    endforeach()
endfunction()

# td_program(name SOURCES ... [DEPS folder ...] [LIBS item ...]): an installed program.
function(td_program name)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;DEPS;LIBS")
    add_executable(${name} ${arg_SOURCES})
    target_link_libraries(${name} PRIVATE td_options ${arg_LIBS})
    td_link(${name} PRIVATE ${arg_DEPS})
    target_link_libraries(${name} PRIVATE m)
    install(TARGETS ${name} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
    if(NOT CMAKE_CROSSCOMPILING)
        td_program_texts(${name})
    endif()
endfunction()

# The man page and the completions of a program, printed by itself from its option tables.
function(td_program_texts name)
    set(man ${CMAKE_CURRENT_BINARY_DIR}/${name}.1)
    set(bash ${CMAKE_CURRENT_BINARY_DIR}/${name}.bash)
    add_custom_command(OUTPUT ${man} ${bash}
        COMMAND ${name} help --man > ${man}
        COMMAND ${name} help --completions bash > ${bash}
        DEPENDS ${name} COMMENT "Writing ${name}.1 and its completions" VERBATIM)
    add_custom_target(${name}_texts ALL DEPENDS ${man} ${bash})
    install(FILES ${man} DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
    install(FILES ${bash} DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions
            RENAME ${name})
endfunction()

# What leaks in libraries of the system is not ours.
set(TD_LSAN_OPTIONS "suppressions=${PROJECT_SOURCE_DIR}/tests/support/lsan.supp:print_suppressions=0")

# td_test(name SOURCES ... [DEPS folder ...] [LIBS item ...] [LABELS label ...] [TIMEOUT seconds]
#         [ARGS word ...])
# A cmocka program and its ctest entry; exit code 77 is "skipped". The time limit only ends what hangs:
# it is far above what a slow machine needs.
# Without cmocka, or without one of its modules, the test is left out.
function(td_test name)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "TIMEOUT" "SOURCES;DEPS;LIBS;LABELS;ARGS")
    if(NOT TD_HAVE_CMOCKA)
        return()
    endif()
    foreach(dep IN LISTS arg_DEPS)
        if(NOT TARGET td_${dep})
            message(STATUS "tandem: test ${name} is left out, td_${dep} does not exist")
            return()
        endif()
    endforeach()
    if(NOT arg_LABELS)
        set(arg_LABELS quick)
    endif()
    if(NOT arg_TIMEOUT)
        set(arg_TIMEOUT 120)
        if("full" IN_LIST arg_LABELS)
            set(arg_TIMEOUT 300)
        endif()
    endif()
    if(TD_SANITIZE)
        math(EXPR arg_TIMEOUT "${arg_TIMEOUT} * 4")
    endif()
    add_executable(${name} ${arg_SOURCES})
    target_link_libraries(${name} PRIVATE td_options td_test_support ${arg_LIBS})
    td_link(${name} PRIVATE ${arg_DEPS})
    target_link_libraries(${name} PRIVATE PkgConfig::CMOCKA m)
    add_test(NAME ${name} COMMAND ${name} ${arg_ARGS} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    set_tests_properties(${name} PROPERTIES LABELS "${arg_LABELS}" TIMEOUT ${arg_TIMEOUT}
                         SKIP_RETURN_CODE 77
                         ENVIRONMENT "LSAN_OPTIONS=${TD_LSAN_OPTIONS}")
endfunction()
