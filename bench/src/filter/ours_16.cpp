#include "filter/ours.hpp"

namespace dunnock::bench {

template Result<std::unique_ptr<Subject>> make_ours<16>(const Case& one, const SubjectOptions& options);
template Result<std::unique_ptr<Subject>> open_ours<16>(const std::string& path);

}  // namespace dunnock::bench
