// What one rank does of a plan: no slot is used again too early, no dependency of the plan is lost, and ranks whose
// messages wait for each other finish. All of this is computed, not run, so finding an error does not depend on timing.
#include "rank_program.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "dunnock/training/trainer.hpp"
#include "support/seed.hpp"

namespace dunnock::training {
namespace {

const std::vector<model::ModelOptions>& models() {
  static const std::vector<model::ModelOptions> all{
      model::GptOptions{.vocabulary = 29, .context = 12, .layers = 4, .heads = 2, .width = 16, .mlp_ratio = 2},
      model::MlpOptions{.inputs = 20, .hidden = {24, 17, 16, 15, 12, 11, 10}, .classes = 5}};
  return all;
}

Step random_costs(const model::ModelOptions& model, bool clips, std::mt19937_64& random) {
  Step step = estimate_step(model, model::DataType::kF32, 2, {});
  std::uniform_real_distribution<> us(1, 100);
  for (Layer& layer : step.layers) {
    for (Cost* cost : {&layer.forward, &layer.output_gradient, &layer.weight_gradient, &layer.update}) {
      if (cost->us > 0) *cost = {us(random), 0.4};
    }
  }
  step.clips = clips;
  return step;
}

/// Which operations are over before one begins, whatever the speed of the lanes.
class Order {
 public:
  explicit Order(const RankProgram& program) : before_(program.ops.size(), std::vector<bool>(program.ops.size())) {
    std::map<unsigned, std::size_t> last_of_lane;
    for (std::size_t i = 0; i < program.ops.size(); ++i) {
      const schedule::Slot& slot = program.schedule.slots[i];
      EXPECT_EQ(slot.op, i);
      const auto follows = [&](std::size_t other) {
        before_[i][other] = true;
        for (std::size_t j = 0; j < other; ++j) before_[i][j] = before_[i][j] || before_[other][j];
      };
      for (const schedule::OpId wait : slot.waits) {
        EXPECT_LT(wait, i);
        follows(wait);
      }
      if (const auto last = last_of_lane.find(slot.lane); last != last_of_lane.end()) follows(last->second);
      last_of_lane[slot.lane] = i;
    }
  }
  [[nodiscard]] bool is_before(std::size_t one, std::size_t other) const { return before_[other][one]; }

 private:
  std::vector<std::vector<bool>> before_;
};

bool has_slot(Part part) {
  return part == Part::kForward || part == Part::kOutputGradient || part == Part::kWeightGradient ||
         part == Part::kSendActivation || part == Part::kSendGradient;
}

void expect_slots_kept(const RankProgram& program, const Order& order) {
  for (std::size_t i = 0; i < program.ops.size(); ++i) {
    const RankOp& one = program.ops[i];
    if (!has_slot(one.tag.part)) continue;
    ASSERT_LT(one.slot, program.slots);
    for (std::size_t j = i + 1; j < program.ops.size(); ++j) {
      const RankOp& other = program.ops[j];
      if (!has_slot(other.tag.part)) continue;
      const bool same_batch =
          std::pair(one.tag.iteration, one.tag.micro_batch) == std::pair(other.tag.iteration, other.tag.micro_batch);
      if (same_batch) {
        ASSERT_EQ(one.slot, other.slot) << one.name << ", " << other.name;
      } else if (one.slot == other.slot) {
        ASSERT_TRUE(order.is_before(i, j))
            << other.name << " uses slot " << one.slot << ", and " << one.name << " may still be under way";
      }
    }
  }
}

/// The operations of the plan, each with what it is here: the last of its roles but a send, or none.
void expect_needs_kept(const Plan& plan, const RankProgram& program, unsigned device, const Order& order) {
  std::vector<std::size_t> here(plan.graph.ops().size(), program.ops.size());
  std::size_t next = 0;
  const auto take = [&](Role role) {
    while (program.ops.at(next).tag.part == Part::kNorm && plan.family == Family::kPipeline) ++next;
    EXPECT_EQ(program.ops.at(next).role, role) << program.ops[next].name;
    return next++;
  };
  const auto expect_after_needs = [&](schedule::OpId op, std::size_t mine) {
    for (const schedule::OpId need : plan.graph.needs(op)) {
      if (here[need] == program.ops.size()) continue;  // Of another rank.
      ASSERT_TRUE(order.is_before(here[need], mine))
          << program.ops[mine].name << " does not wait for " << plan.graph.op(need).name;
    }
  };
  for (const schedule::Slot& slot : plan.schedule.slots) {
    const OpTag& tag = plan.tags[slot.op];
    if (tag.part == Part::kSendActivation || tag.part == Part::kSendGradient) {
      if (plan.chunk_devices[tag.chunk] == device) expect_after_needs(slot.op, take(Role::kSend));
      if (tag.device == device) here[slot.op] = take(Role::kReceive);
      continue;
    }
    if (plan.family == Family::kPipeline && plan.schedule.lanes[slot.lane].rank != device) continue;
    here[slot.op] = take(Role::kCompute);
    expect_after_needs(slot.op, here[slot.op]);
  }
  EXPECT_EQ(next, program.ops.size());
}

/// Both gradients of a tied table that lie on one device are added up by the owner's update, or by the norm.
void expect_ties_kept(const Plan& plan, const Step& step, const RankProgram& program, unsigned device,
                      const Order& order) {
  const auto chunk_of = [&](unsigned layer) {
    return static_cast<unsigned>(std::ranges::upper_bound(plan.chunk_begins, layer) - plan.chunk_begins.begin() - 1);
  };
  for (unsigned layer = 0; layer < step.layers.size(); ++layer) {
    if (!step.layers[layer].tied_to) continue;
    const unsigned user = chunk_of(layer);
    const unsigned owner = chunk_of(*step.layers[layer].tied_to);
    if (plan.chunk_devices[user] != device || plan.chunk_devices[owner] != device) continue;
    for (std::size_t i = 0; i < program.ops.size(); ++i) {
      const OpTag& update = program.ops[i].tag;
      if (update.part != Part::kUpdate || update.chunk != owner) continue;
      for (std::size_t j = 0; j < program.ops.size(); ++j) {
        const OpTag& tag = program.ops[j].tag;
        if (tag.iteration != update.iteration || tag.chunk != user) continue;
        if (tag.part != Part::kWeightGradient && tag.part != Part::kAllReduce) continue;
        ASSERT_TRUE(order.is_before(j, i)) << program.ops[i].name << " does not wait for " << program.ops[j].name;
      }
    }
  }
}

/// dW that reads what dO keeps says so in the graph, whatever else the schedule waits for.
void expect_kept_gradients_waited_for(const Plan& plan, const Step& step) {
  std::map<std::pair<unsigned, unsigned>, schedule::OpId> output_gradients;  // by iteration and layer
  for (schedule::OpId op = 0; op < plan.tags.size(); ++op) {
    const OpTag& tag = plan.tags[op];
    if (tag.part == Part::kOutputGradient) output_gradients[{tag.iteration, tag.chunk}] = op;
  }
  for (schedule::OpId op = 0; op < plan.tags.size(); ++op) {
    const OpTag& tag = plan.tags[op];
    if (tag.part != Part::kWeightGradient || tag.chunk == 0 || !step.layers[tag.chunk].weights_behind_output) continue;
    const auto needs = plan.graph.needs(op);
    EXPECT_NE(std::ranges::find(needs, output_gradients.at({tag.iteration, tag.chunk})), needs.end())
        << plan.graph.op(op).name;
  }
}

/// The norm is behind all gradients and sums of its iteration, and before all updates.
void expect_norm_between(const RankProgram& program, const Order& order) {
  for (std::size_t i = 0; i < program.ops.size(); ++i) {
    if (program.ops[i].tag.part != Part::kNorm) continue;
    for (std::size_t j = 0; j < program.ops.size(); ++j) {
      const OpTag& tag = program.ops[j].tag;
      if (tag.iteration != program.ops[i].tag.iteration) continue;
      if (tag.part == Part::kUpdate) {
        ASSERT_TRUE(order.is_before(i, j)) << program.ops[j].name;
      }
      if (tag.part == Part::kWeightGradient || tag.part == Part::kOutputGradient || tag.part == Part::kAllReduce) {
        ASSERT_TRUE(order.is_before(j, i)) << program.ops[j].name;
      }
    }
  }
}

/// Runs all ranks' lanes, where a message stands until both ends have come to it, and those between two ranks meet in
/// the order of issue; what ties and norms exchange, too.
void expect_all_end(const std::vector<RankProgram>& programs, bool clips) {
  struct Lane {
    std::deque<std::size_t> left;
  };
  std::vector<std::map<unsigned, Lane>> lanes(programs.size());
  std::vector<std::vector<bool>> done(programs.size());
  std::map<std::tuple<std::size_t, unsigned, bool>, std::vector<std::size_t>> messages;  // (rank, peer, sends)
  for (std::size_t r = 0; r < programs.size(); ++r) {
    done[r].resize(programs[r].ops.size());
    for (std::size_t i = 0; i < programs[r].ops.size(); ++i) {
      lanes[r][programs[r].schedule.slots[i].lane].left.push_back(i);
      const RankOp& op = programs[r].ops[i];
      if (op.role != Role::kCompute) messages[{r, op.peer, op.role == Role::kSend}].push_back(i);
    }
  }
  for (const auto& [key, sent] : messages) {
    const auto& [rank, peer, sends] = key;
    if (!sends) continue;
    const auto& received = messages.at({peer, static_cast<unsigned>(rank), false});
    ASSERT_EQ(sent.size(), received.size());
    for (std::size_t n = 0; n < sent.size(); ++n) {
      const OpTag& from = programs[rank].ops[sent[n]].tag;
      const OpTag& to = programs[peer].ops[received[n]].tag;
      ASSERT_EQ(std::tuple(from.part, from.iteration, from.chunk, from.micro_batch),
                std::tuple(to.part, to.iteration, to.chunk, to.micro_batch));
    }
  }
  const auto at_front = [&](std::size_t r, std::size_t i) {
    const auto& slot = programs[r].schedule.slots[i];
    return lanes[r][slot.lane].left.front() == i &&
           std::ranges::all_of(slot.waits, [&](schedule::OpId wait) { return done[r][wait]; });
  };
  const auto finish = [&](std::size_t r, std::size_t i) {
    done[r][i] = true;
    lanes[r][programs[r].schedule.slots[i].lane].left.pop_front();
  };
  // All ranks exchange in the norm, or the first and the last update of an iteration: as strict as all in one.
  const auto meets = [&](const RankOp& op) { return op.tag.part == (clips ? Part::kNorm : Part::kUpdate); };
  bool moved = true;
  while (moved) {
    moved = false;
    for (std::size_t r = 0; r < programs.size(); ++r) {
      for (auto& [lane, all] : lanes[r]) {
        if (all.left.empty() || !at_front(r, all.left.front())) continue;
        const std::size_t i = all.left.front();
        const RankOp& op = programs[r].ops[i];
        if (op.role != Role::kCompute) {
          const auto& mine = messages[{r, op.peer, op.role == Role::kSend}];
          const auto n = static_cast<std::size_t>(std::ranges::find(mine, i) - mine.begin());
          const std::size_t other = messages[{op.peer, static_cast<unsigned>(r), op.role != Role::kSend}][n];
          if (!at_front(op.peer, other)) continue;
          finish(op.peer, other);
        } else if (meets(op)) {
          const auto has_come = [&](std::size_t rank) {
            for (std::size_t j = 0; j < programs[rank].ops.size(); ++j) {
              const RankOp& one = programs[rank].ops[j];
              if (meets(one) && one.tag.iteration == op.tag.iteration && (done[rank][j] || at_front(rank, j)))
                return true;
            }
            return false;
          };
          bool all_there = true;
          for (std::size_t rank = 0; rank < programs.size(); ++rank) all_there = all_there && has_come(rank);
          if (!all_there) continue;
        }
        finish(r, i);
        moved = true;
      }
    }
  }
  for (std::size_t r = 0; r < programs.size(); ++r) {
    for (std::size_t i = 0; i < done[r].size(); ++i)
      ASSERT_TRUE(done[r][i]) << programs[r].ops[i].name << " of rank " << r << " waits for ever";
  }
}

class RankPrograms : public ::testing::TestWithParam<std::string> {};

TEST_P(RankPrograms, keep_slots_and_dependencies_and_end) {
  const auto& names = schedule_names();
  const Family family = std::ranges::find(names, std::string_view(GetParam()), &ScheduleName::name)->family;
  auto random = test::generator(1);
  unsigned programs = 0;
  for (unsigned round = 0; round < 24; ++round) {
    const model::ModelOptions& model = models()[round % models().size()];
    const bool clips = random() % 2 == 0;
    const Step step = random_costs(model, clips, random);
    PlanOptions options{.link = {.latency_us = static_cast<double>(random() % 100), .gb_per_s = 1}};
    options.iterations = 1 + static_cast<unsigned>(random() % 4);
    if (family == Family::kPipeline) {
      options.devices = 1 + static_cast<unsigned>(random() % 4);
      options.micro_batches = 1 + static_cast<unsigned>(random() % 6);
      options.data_parallel = 1 + static_cast<unsigned>(random() % 2);
    } else if (family == Family::kDataParallel) {
      options.devices = 4;
      options.message_bytes = std::uint64_t{512} << random() % 4;
    }
    SCOPED_TRACE(std::to_string(options.devices) + " devices, " + std::to_string(options.micro_batches) +
                 " micro-batches, " + std::to_string(options.iterations) + " iterations, data-parallel " +
                 std::to_string(options.data_parallel) + (clips ? ", clips" : ""));
    const auto plan = make_plan(GetParam(), step, options);
    if (!plan && plan.error().code == ErrorCode::kInvalidArgument) continue;  // Fewer layers than chunks.
    ASSERT_TRUE(plan) << plan.error().message;
    if (family != Family::kPipeline) expect_kept_gradients_waited_for(*plan, step);
    std::vector<RankProgram> all;
    const unsigned ranks = family == Family::kPipeline ? options.devices : 1;
    for (unsigned device = 0; device < ranks; ++device) {
      all.push_back(make_rank_program(*plan, device, clips));
      const Order order(all.back());
      expect_slots_kept(all.back(), order);
      expect_needs_kept(*plan, all.back(), device, order);
      if (family == Family::kPipeline) expect_ties_kept(*plan, step, all.back(), device, order);
      expect_norm_between(all.back(), order);
      ++programs;
      if (HasFatalFailure() || HasNonfatalFailure()) return;
    }
    expect_all_end(all, clips);
    // What the trainer counts on: a window that is not full finds room in the slots of a full one.
    PlanOptions fewer = options;
    for (fewer.iterations = 1; fewer.iterations < options.iterations; ++fewer.iterations) {
      const auto part = make_plan(GetParam(), step, fewer);
      ASSERT_TRUE(part) << part.error().message;
      EXPECT_EQ(part->chunk_begins, plan->chunk_begins);
      EXPECT_EQ(part->chunk_devices, plan->chunk_devices);
      for (unsigned device = 0; device < ranks; ++device)
        EXPECT_LE(make_rank_program(*part, device, clips).slots, all[device].slots)
            << fewer.iterations << " iterations, device " << device;
    }
  }
  EXPECT_GT(programs, 10U);
}

std::vector<std::string> all_schedules() {
  std::vector<std::string> names;
  for (const ScheduleName& name : schedule_names()) names.emplace_back(name.name);
  return names;
}
INSTANTIATE_TEST_SUITE_P(All, RankPrograms, ::testing::ValuesIn(all_schedules()));

}  // namespace
}  // namespace dunnock::training
