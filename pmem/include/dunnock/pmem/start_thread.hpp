// Starts threads of a library, which has to continue without them where the system has none to give.
#pragma once

#include <exception>
#include <memory>
#include <thread>
#include <utility>

namespace dunnock::detail {

/// A new thread that runs `work`; null, and nothing is run, when it can't be started: a limit of the user, the
/// container or the machine is reached. std::thread says so by an exception, which would end the program.
template <class Work>
[[nodiscard]] std::unique_ptr<std::thread> start_thread(Work&& work) noexcept {
  try {
    return std::make_unique<std::thread>(std::forward<Work>(work));
  } catch (const std::exception&) {  // std::system_error; std::bad_alloc for what the thread needs.
    return nullptr;
  }
}

}  // namespace dunnock::detail
