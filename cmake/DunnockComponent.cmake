# One function for every layer, one for tools, one for the installation.

set(DUNNOCK_COMPONENTS "" CACHE INTERNAL "")

add_library(dunnock_options INTERFACE)
target_compile_options(dunnock_options INTERFACE
                       "$<$<COMPILE_LANGUAGE:CXX>:-march=${DUNNOCK_ARCH};-Wall;-Wextra;-Wshadow>"
                       "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-march=${DUNNOCK_ARCH},-Wall>")
if(DUNNOCK_SANITIZE STREQUAL "address")
  set(flags -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  if(DUNNOCK_SANITIZE_WITHOUT)
    list(APPEND flags "-fno-sanitize=${DUNNOCK_SANITIZE_WITHOUT}")
  endif()
  target_compile_options(dunnock_options INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${flags}>")
  target_link_options(dunnock_options INTERFACE -fsanitize=address,undefined)
elseif(DUNNOCK_SANITIZE STREQUAL "thread")
  # gcc warns that TSan ignores std::atomic_thread_fence; the library synchronises by atomics only.
  set(flags -fsanitize=thread -fno-omit-frame-pointer -Wno-tsan)
  target_compile_options(dunnock_options INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${flags}>")
  target_link_options(dunnock_options INTERFACE -fsanitize=thread)
endif()

# What is not hot (the parsing of options, tables, most tests) is compiled in two thirds of the time.
add_library(dunnock_not_hot INTERFACE)
target_compile_options(dunnock_not_hot INTERFACE "$<$<AND:$<CONFIG:Release>,$<COMPILE_LANGUAGE:CXX>>:-O1>")

# dunnock_component(<layer> DEPENDS <targets>): library dunnock_<layer>, alias dunnock::<layer>, from src/*.cpp and
# include/dunnock/<layer>/**.hpp. Each public header is verified to compile alone; *.ipp are only installed.
function(dunnock_component name)
  cmake_parse_arguments(ARG "" "" "DEPENDS;PRIVATE_DEPENDS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/src/*.cpp)
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/include/*.hpp)
  # Parts of a class, included by its header only.
  file(GLOB_RECURSE parts CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/include/*.ipp)
  set(target dunnock_${name})
  add_library(${target} STATIC ${sources})
  add_library(dunnock::${name} ALIAS ${target})
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${name} VERIFY_INTERFACE_HEADER_SETS ON)
  target_sources(${target} PUBLIC FILE_SET HEADERS BASE_DIRS include FILES ${headers})
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_link_libraries(${target} PUBLIC ${ARG_DEPENDS} PRIVATE ${ARG_PRIVATE_DEPENDS}
                        $<BUILD_INTERFACE:dunnock_options>)
  install(TARGETS ${target} EXPORT dunnock-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
          FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  foreach(part ${parts})
    cmake_path(RELATIVE_PATH part BASE_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}/include OUTPUT_VARIABLE relative)
    cmake_path(GET relative PARENT_PATH folder)
    install(FILES ${part} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/${folder})
  endforeach()
  set(DUNNOCK_COMPONENTS ${DUNNOCK_COMPONENTS} ${target} CACHE INTERNAL "")
endfunction()

# dunnock_program(<name> SOURCES ... [HOT ...] DEPENDS ...): an installed executable in bin/. Its SOURCES call what is
# hot in the libraries; what is hot in the program itself, such as loops around inlined lookups, is in HOT.
function(dunnock_program name)
  cmake_parse_arguments(ARG "" "" "SOURCES;HOT;DEPENDS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES} ${ARG_HOT})
  # (GCC 12 crashes on headers that were precompiled with another -O.)
  set_source_files_properties(${ARG_HOT} PROPERTIES COMPILE_OPTIONS "$<$<CONFIG:Release>:-O3>"
                              SKIP_PRECOMPILE_HEADERS ON)
  target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} dunnock_options dunnock_not_hot)
  dunnock_precompile(${name} LIKE programs HEADERS <CLI/CLI.hpp> <nlohmann/json.hpp> <fmt/format.h>
                     DEPENDS CLI11::CLI11 nlohmann_json::nlohmann_json fmt::fmt dunnock_not_hot)
  install(TARGETS ${name} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endfunction()

# find_package(dunnock) and dunnock.pc.
function(dunnock_install)
  include(CMakePackageConfigHelpers)
  set(dir ${CMAKE_INSTALL_LIBDIR}/cmake/dunnock)
  install(EXPORT dunnock-targets NAMESPACE dunnock:: DESTINATION ${dir})
  configure_package_config_file(cmake/dunnock-config.cmake.in ${PROJECT_BINARY_DIR}/dunnock-config.cmake
                                INSTALL_DESTINATION ${dir})
  write_basic_package_version_file(${PROJECT_BINARY_DIR}/dunnock-config-version.cmake COMPATIBILITY SameMinorVersion)
  install(FILES ${PROJECT_BINARY_DIR}/dunnock-config.cmake ${PROJECT_BINARY_DIR}/dunnock-config-version.cmake
          DESTINATION ${dir})
  # Relative to the .pc file, so that an installed tree can be moved.
  file(RELATIVE_PATH DUNNOCK_PC_TO_PREFIX
       ${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
  # Upper layers first, as a static link wants them.
  list(TRANSFORM DUNNOCK_COMPONENTS PREPEND -l OUTPUT_VARIABLE libraries)
  list(REVERSE libraries)
  list(JOIN libraries " " DUNNOCK_PC_LIBS)
  set(DUNNOCK_PC_LIBS_PRIVATE "")
  if(DUNNOCK_HAS_CUDA)
    set(DUNNOCK_PC_LIBS_PRIVATE "-L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -lrt -ldl -lpthread")
    if(TARGET CUDA::cublasLt)
      string(APPEND DUNNOCK_PC_LIBS_PRIVATE " -lcublasLt")
    endif()
    if(DUNNOCK_NCCL_LIBRARY)
      string(APPEND DUNNOCK_PC_LIBS_PRIVATE " ${DUNNOCK_NCCL_LIBRARY}")
    endif()
  endif()
  if(DUNNOCK_HAS_CUDNN)
    string(APPEND DUNNOCK_PC_LIBS_PRIVATE " ${DUNNOCK_CUDNN_LIBRARY}")
  endif()
  if(DUNNOCK_HAS_DNNL)
    string(APPEND DUNNOCK_PC_LIBS_PRIVATE " -ldnnl")
  endif()
  if(OpenMP_CXX_FOUND)
    string(APPEND DUNNOCK_PC_LIBS_PRIVATE " -fopenmp")
  endif()
  if(MPI_CXX_FOUND)
    string(APPEND DUNNOCK_PC_LIBS_PRIVATE " -lmpi")
  endif()
  configure_file(cmake/dunnock.pc.in ${PROJECT_BINARY_DIR}/dunnock.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/dunnock.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endfunction()
