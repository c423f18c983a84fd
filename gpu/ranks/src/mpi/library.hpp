// MPI, as the files of this folder use it: every call is nonblocking and made under one lock.
#pragma once

#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <atomic>
#include <mutex>
#include <string>

namespace dunnock::ranks::detail::mpi {

inline std::mutex& mpi_mutex() {
  static auto& mutex = *new std::mutex;
  return mutex;
}
/// Operations that were given up still use MPI: then it can't be finalized.
inline std::atomic<bool>& given_up() {
  static std::atomic<bool> value{false};
  return value;
}

inline std::string text_of(int code) {
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  return std::string(text, static_cast<std::size_t>(length));
}

}  // namespace dunnock::ranks::detail::mpi
