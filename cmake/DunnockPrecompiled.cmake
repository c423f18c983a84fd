# Headers of other projects that programs and tests include, parsed once instead of once per file: a quarter of their
# compile time. Never for the libraries, whose files must include what they use.

set(DUNNOCK_STANDARD_HEADERS
    <algorithm> <array> <atomic> <chrono> <cmath> <cstdint> <cstring> <filesystem> <fstream> <functional> <limits>
    <map> <memory> <mutex> <optional> <random> <set> <span> <string> <string_view> <thread> <utility> <variant>
    <vector>)

# dunnock_precompile(<target> LIKE <name> HEADERS <headers> DEPENDS <targets>): `target`, an executable, uses the
# headers that are precompiled under that name. The first target makes them. DEPENDS: where the headers are, and all
# that changes how the target is compiled.
function(dunnock_precompile target)
  cmake_parse_arguments(ARG "" "LIKE" "HEADERS;DEPENDS" ${ARGN})
  set(host dunnock_precompiled_${ARG_LIKE})
  if(NOT TARGET ${host})
    set(source ${PROJECT_BINARY_DIR}/${host}.cpp)
    file(CONFIGURE OUTPUT ${source} CONTENT "int main() {}\n")
    add_executable(${host} EXCLUDE_FROM_ALL ${source})
    target_link_libraries(${host} PRIVATE ${ARG_DEPENDS} dunnock_options)
    target_precompile_headers(${host} PRIVATE ${DUNNOCK_STANDARD_HEADERS} ${ARG_HEADERS})
  endif()
  target_precompile_headers(${target} REUSE_FROM ${host})
endfunction()
