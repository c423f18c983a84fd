#include "filter/cases.hpp"

namespace dunnock::bench {
namespace {

using enum Design;
using enum Medium;
using enum Mode;

void add_dram(std::vector<Case>& all, const FilterBenchOptions& options) {
  for (const Mode mode : {kSingle, kBulk}) {
    all.push_back({"", kSingleWriter, kDram, mode});
    all.push_back({"textbook-4x12", kTextbook12, kDram, mode});
    all.push_back({"textbook-4x16", kTextbook16, kDram, mode});
  }
  all.push_back({"-parallel", kParallel, kDram, kBulk});
  for (const unsigned threads : options.threads) {
    all.push_back({"-parallel", kParallel, kDram, kSingle, threads});
    if (threads > 1) all.push_back({"-parallel", kParallel, kDram, kBulk, threads});
  }
  all.push_back({"blocked-bloom", kBlockedBloom, kDram});
  if (options.quick) return;
  const auto add_ablation = [&](const char* structure, Design design) {
    all.push_back({.structure = structure, .design = design, .medium = kDram, .once = true});
  };
  add_ablation(" no spill", kWithoutSpill);
  add_ablation(" no lookahead", kWithoutLookahead);
  add_ablation(" no primacy", kWithoutPrimacy);
  add_ablation(" half-line groups", kHalfLineGroups);
}

void add_direct(std::vector<Case>& all, const FilterBenchOptions& options) {
  for (const unsigned threads : options.threads) {
    all.push_back({"", kParallel, kDirect, kSingle, threads});
    all.push_back({"", kParallel, kDirect, kBulk, threads});
  }
  all.push_back({"textbook-durable", kTextbookDurable, kDirect});
}

void add_nvm(std::vector<Case>& all, const FilterBenchOptions& options) {
  for (const unsigned threads : options.threads) {
    all.push_back({"", kParallel, kNvm, kSingle, threads});
    all.push_back({.structure = "textbook-durable",
                   .design = kTextbookDurable,
                   .medium = kNvm,
                   .threads = threads,
                   .tails = false});
  }
}

void add_process(std::vector<Case>& all) {
  for (const Mode mode : {kSingle, kBulk})
    all.push_back({.structure = "", .design = kParallel, .medium = kProcess, .mode = mode, .tails = false});
}

}  // namespace

std::vector<Case> cases_of(const FilterBenchOptions& options) {
  std::vector<Case> all;
  if (options.wants("dram")) add_dram(all, options);
  if (options.wants("direct")) add_direct(all, options);
  if (options.wants("nvm")) add_nvm(all, options);
  if (options.wants("process")) add_process(all);
  return all;
}

std::string structure_of(const Case& one, unsigned bits) {
  return one.is_ours() ? "dunnock-" + std::to_string(bits) + one.structure : one.structure;
}

const char* name_of(Medium medium) {
  switch (medium) {
    case kDram: return "dram";
    case kDirect:
    case kCounted: return "direct (dram)";
    case kNvm: return "nvm (emulated)";
    case kProcess: return "process";
    case kFile: return "file";
  }
  return "";
}

const char* name_of(Mode mode) { return mode == kBulk ? "bulk" : "single"; }

}  // namespace dunnock::bench
