#include "dunnock/index/prefix_store.hpp"

namespace dunnock {

DUNNOCK_ON_STANDARD_MEDIA(, PrefixStore);

}  // namespace dunnock
