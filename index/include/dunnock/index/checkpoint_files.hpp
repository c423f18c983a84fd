// Checkpoints as safetensors files: exports what a CheckpointStore holds for PyTorch and related tools, and imports it.
//
// Tensors are read and written in pieces, so files and checkpoints may be larger than memory.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "dunnock/base/output_file.hpp"
#include "dunnock/base/result.hpp"
#include "dunnock/index/checkpoint_store.hpp"
#include "dunnock/index/safetensors.hpp"

namespace dunnock {

/// An open safetensors file whose header has been read and is valid.
class SafetensorsFile {
 public:
  /// Errors: NotFound, Io, Corrupt (what is wrong with the header, or the file is cut off), Unsupported (a dtype).
  [[nodiscard]] static Result<SafetensorsFile> open(const std::string& path);
  SafetensorsFile(SafetensorsFile&& other) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&& other) noexcept;
  ~SafetensorsFile();

  [[nodiscard]] const SafetensorsHeader& header() const noexcept { return header_; }
  /// The tensors as sources for a save, read from the file as they are needed. Valid until this object moves or ends.
  [[nodiscard]] std::vector<TensorSource> sources() const;
  /// Reads bytes of the data, from `offset_bytes` after the header. Errors: as the system says.
  [[nodiscard]] Status read(std::uint64_t offset_bytes, std::span<std::byte> into) const;

 private:
  SafetensorsFile(int descriptor, std::uint64_t data_at, SafetensorsHeader header) noexcept
      : descriptor_(descriptor), data_at_(data_at), header_(std::move(header)) {}
  int descriptor_;
  std::string path_;
  std::uint64_t data_at_;
  SafetensorsHeader header_;
};

/// A safetensors file that is being written. It is an OutputFile, so an ordinary file appears whole or not at all, and
/// anything else is written in place.
class SafetensorsWriter {
 public:
  /// Errors: InvalidArgument (names, a directory), NotFound (folder), ReadOnly, NoSpace, Io.
  [[nodiscard]] static Result<SafetensorsWriter> create(const std::string& path, std::span<const TensorSpec> tensors,
                                                        std::span<const std::pair<std::string, std::string>> notes);
  /// Writes bytes of tensor `tensor` (its index in `tensors`). Threads: any number, unless this is a stream: then
  /// pieces must come in order. Errors: NoSpace, Io, as the system says; InvalidArgument (a stream, out of order).
  [[nodiscard]] Status write(std::size_t tensor, std::uint64_t offset_bytes, std::span<const std::byte> from);
  [[nodiscard]] bool is_stream() const noexcept { return output_.is_stream(); }
  /// Replaces an existing file of that name in one step. Errors: NoSpace, Io.
  [[nodiscard]] Status commit() { return output_.commit(); }

 private:
  SafetensorsWriter(OutputFile output, std::vector<std::uint64_t> begins) noexcept
      : output_(std::move(output)), begins_(std::move(begins)) {}
  OutputFile output_;
  std::vector<std::uint64_t> begins_;  // of each tensor in the file
};

/// Writes a checkpoint to the file `path`. Errors: those of CheckpointStore::restore and SafetensorsWriter.
template <Media M>
[[nodiscard]] Result<RestoreReport> export_safetensors(const CheckpointStore<M>& store, std::string_view name,
                                                       std::uint64_t version, const std::string& path,
                                                       unsigned threads = 1) {
  DUNNOCK_TRY(const auto manifest, store.manifest(name, version));
  std::vector<TensorSpec> specs;
  for (const ManifestTensor& tensor : manifest.tensors) specs.push_back(tensor.spec);
  DUNNOCK_TRY(auto writer, SafetensorsWriter::create(path, specs, manifest.notes));
  std::vector<TensorSink> sinks;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    sinks.push_back({specs[i], {}, [&writer, i](std::uint64_t offset, std::span<const std::byte> from) {
                       return writer.write(i, offset, from);
                     }});
  }
  // One thread takes the pieces in their order.
  auto report = store.restore(name, manifest.version, sinks, writer.is_stream() ? 1 : threads);
  if (!report) return report;
  DUNNOCK_TRY(writer.commit());
  return report;
}

/// Saves the file `path` as a checkpoint. Errors: those of SafetensorsFile::open and CheckpointStore::save.
template <Media M>
[[nodiscard]] Result<SaveReport> import_safetensors(CheckpointStore<M>& store, std::string_view name,
                                                    std::uint64_t version, const std::string& path,
                                                    unsigned threads = 1) {
  DUNNOCK_TRY(const auto file, SafetensorsFile::open(path));
  const std::vector<TensorSource> sources = file.sources();
  return store.save(name, version, sources, {.threads = threads, .notes = file.header().notes});
}

}  // namespace dunnock
