#include "dunnock/base/last_catch.hpp"

#include <exception>
#include <new>
#include <stdexcept>

namespace dunnock {

std::string words_of_exception() {
  try {
    std::rethrow_exception(std::current_exception());
  } catch (const std::bad_alloc&) {
    return "out of memory";
  } catch (const std::length_error&) {
    return "a size exceeds the address space";
  } catch (const std::exception& error) {
    return std::string("unexpected error: ") + error.what();
  } catch (...) {
    return "unexpected error of an unknown type";
  }
}

}  // namespace dunnock
