#include "dunnock/index/checkpoint_saver.hpp"

namespace dunnock {

DUNNOCK_ON_STANDARD_MEDIA(, CheckpointSaver);

}  // namespace dunnock
