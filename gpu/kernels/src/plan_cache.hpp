// What a library has prepared for a shape, kept for the next call: at most kPlansMax, the longest unused goes.
// Threads: any number; while one makes a plan the others wait. A plan in use outlives its place here.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

namespace dunnock::kernels::detail {

template <class Key, class Plan>
class PlanCache {
 public:
  static constexpr std::size_t kPlansMax = 256;

  /// The key's plan, which make() gives when there is none. Null is kept too: what can't be done is not tried again.
  template <class Make>
  std::shared_ptr<const Plan> get(const Key& key, const Make& make) {
    const std::lock_guard lock(mutex_);
    auto found = plans_.find(key);
    if (found == plans_.end()) {
      if (plans_.size() == kPlansMax) {
        plans_.erase(std::min_element(plans_.begin(), plans_.end(),
                                      [](const auto& a, const auto& b) { return a.second.used < b.second.used; }));
      }
      found = plans_.emplace(key, Entry{make(), 0}).first;
    }
    found->second.used = ++clock_;
    return found->second.plan;
  }
  [[nodiscard]] std::size_t size() const {
    const std::lock_guard lock(mutex_);
    return plans_.size();
  }

 private:
  struct Entry {
    std::shared_ptr<const Plan> plan;
    std::uint64_t used;
  };
  mutable std::mutex mutex_;
  std::map<Key, Entry> plans_;
  std::uint64_t clock_ = 0;
};

}  // namespace dunnock::kernels::detail
