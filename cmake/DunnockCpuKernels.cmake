# The threads of the CPU kernels (OpenMP) and, where it is there, oneDNN. Not with sanitizers, which know neither.
# Sets OpenMP_CXX_FOUND, DUNNOCK_HAS_DNNL.
set(DUNNOCK_HAS_DNNL OFF)
if(NOT DUNNOCK_SANITIZE)
  find_package(OpenMP COMPONENTS CXX)
  # oneDNN's own package file asks for OpenCL, which is not needed here.
  find_library(DUNNOCK_DNNL_LIBRARY dnnl)
  find_path(DUNNOCK_DNNL_INCLUDE dnnl.hpp)
  if(OpenMP_CXX_FOUND AND DUNNOCK_DNNL_LIBRARY AND DUNNOCK_DNNL_INCLUDE)
    set(DUNNOCK_HAS_DNNL ON)
  endif()
endif()
message(STATUS "CPU kernels: OpenMP ${OpenMP_CXX_FOUND}, oneDNN ${DUNNOCK_HAS_DNNL}")
