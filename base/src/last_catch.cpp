#include "dunnock/base/last_catch.hpp"

#include <exception>
#include <new>
#include <stdexcept>

namespace dunnock {

std::string words_of_exception() {
  try {
    std::rethrow_exception(std::current_exception());
  } catch (const std::bad_alloc&) {
    return "there is not enough memory for this";
  } catch (const std::length_error&) {
    return "this is larger than any memory";
  } catch (const std::exception& error) {
    return std::string("an error that nobody expected: ") + error.what();
  } catch (...) {
    return "an error that nobody expected, and that has no words";
  }
}

}  // namespace dunnock
