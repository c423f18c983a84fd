#include "dunnock/base/same_file.hpp"

#include <sys/stat.h>

#include <filesystem>
#include <optional>

#include "dunnock/base/printable.hpp"

namespace dunnock {
namespace {

bool is_shareable(const struct stat& info) noexcept { return !S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode); }

std::optional<struct stat> look_at(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return std::nullopt;
  return info;
}

bool is_same(const struct stat& first, const struct stat& second) noexcept {
  if (S_ISBLK(first.st_mode) && S_ISBLK(second.st_mode)) return first.st_rdev == second.st_rdev;
  return first.st_dev == second.st_dev && first.st_ino == second.st_ino;
}

/// Links followed as far as there is something; then as it is spelled.
std::filesystem::path resolved(const std::string& path) {
  std::error_code unseen;
  std::filesystem::path at = path;
  for (int links = 0; links < 40 && std::filesystem::is_symlink(at, unseen); ++links) {  // To what is not there yet.
    const std::filesystem::path to = std::filesystem::read_symlink(at, unseen);
    if (unseen) break;
    at = to.is_absolute() ? to : at.parent_path() / to;
  }
  std::filesystem::path all = std::filesystem::weakly_canonical(std::filesystem::absolute(at, unseen), unseen);
  return unseen ? at.lexically_normal() : all;
}

}  // namespace

bool is_same_file(const std::string& first, const std::string& second) {
  if (first.empty() || second.empty()) return false;
  const auto first_there = look_at(first);
  const auto second_there = look_at(second);
  if (first_there && second_there) return !is_shareable(*first_there) && is_same(*first_there, *second_there);
  if (first_there || second_there) return false;
  const std::filesystem::path one = resolved(first), other = resolved(second);
  if (one == other) return true;
  if (one.filename() != other.filename()) return false;
  // One folder may have several names: bind mounts, for one.
  const auto one_folder = look_at(one.parent_path().string());
  const auto other_folder = look_at(other.parent_path().string());
  return one_folder && other_folder && is_same(*one_folder, *other_folder);
}

bool is_same_file(int descriptor, const std::string& path) {
  struct stat info {};
  const auto there = look_at(path);
  return there && ::fstat(descriptor, &info) == 0 && !is_shareable(info) && is_same(info, *there);
}

Status check_paths(std::span<const NamedPath> paths) {
  for (std::size_t i = 0; i < paths.size(); ++i) {
    for (std::size_t j = i + 1; j < paths.size(); ++j) {
      if (!paths[i].written && !paths[j].written) continue;
      if (!is_same_file(paths[i].path, paths[j].path)) continue;
      const auto text = [](const NamedPath& one) { return std::string(one.what) + " (" + printable(one.path) + ")"; };
      return make_error(ErrorCode::kInvalidArgument, text(paths[i]) + " and " + text(paths[j]) + " are the same file");
    }
  }
  return {};
}

}  // namespace dunnock
