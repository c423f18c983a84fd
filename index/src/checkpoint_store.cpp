#include "dunnock/index/checkpoint_store.hpp"

namespace dunnock {

DUNNOCK_ON_STANDARD_MEDIA(, CheckpointStore);

}  // namespace dunnock
