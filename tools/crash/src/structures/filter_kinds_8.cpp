#include "structures/filter_kinds.hpp"

namespace dunnock::crash {

template std::unique_ptr<FilterKind> filter_kind_of<8>(const SubjectOptions& options);

}  // namespace dunnock::crash
