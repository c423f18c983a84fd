// CheckpointStore in dunnock-crash.
#include "dunnock/index/checkpoint_points.hpp"
#include "structures.hpp"
#include "structures/checkpoint_subject.hpp"
#include "structures/recorded.hpp"

namespace dunnock::crash {
namespace {

/// Between the catalog's own steps and those of what it names.
std::vector<Mutant> wrong_orders() {
  using namespace checkpoint_point;
  constexpr auto kStore = Mutation::Kind::kStoreTooLate;
  constexpr auto kFlush = Mutation::Kind::kFlushTooLate;
  return {
      too_late(kStore, kFields, kPublish, "catalog line live before it is filled"),
      too_late(kFlush, index_point::kLane, kPublish, "chunks durable only with the checkpoint"),
      too_late(kFlush, index_point::kRecordLive, kPublish, "entries durable only with the checkpoint"),
      too_late(kFlush, log_point::kPayload, kPublish, "bytes durable only with the checkpoint"),
      too_late(kStore, kRemove, index_point::kEraseRecord, "chunks erased before their checkpoint is removed"),
      too_late(kFlush, kRemove, index_point::kEraseRecord, "checkpoint durably removed after its chunks"),
      too_late(kStore, kFormatFields, kFormatMagic, "catalog header filled after its magic word"),
      too_late(kStore, kFormatLines, kFormatMagic, "catalog lines free after the header's magic word"),
  };
}

}  // namespace

Structure checkpoint_structure() {
  return {.name = "checkpoint",
          .subject = recorded<CheckpointSubject>,
          .point_name = checkpoint_point::name,
          .bugs = {.points = checkpoint_point::kTable, .by_hand = wrong_orders()},
          .kill = kill_checkpoint,
          .corrupt = corrupt_checkpoint};
}

}  // namespace dunnock::crash
