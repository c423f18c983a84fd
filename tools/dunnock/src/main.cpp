// dunnock: looks into pools, checks them, and moves what they hold out and in.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdio>
#include <string>
#include <string_view>

#include "dunnock/base/command_line.hpp"
#include "dunnock/base/paths.hpp"
#include "dunnock/base/printable.hpp"
#include "dunnock/base/program.hpp"
#include "options.hpp"
#include "print.hpp"

namespace {

using dunnock::tool::Options;
using Command = dunnock::Result<int> (*)(const Options&);

/// No file that is read or written may be the pool, whatever it is called.
dunnock::Status check_files(const Options& options, bool written) {
  const std::string file = options.file == "-" ? std::string() : options.file;
  const std::array paths{dunnock::NamedPath{"the pool", options.pool, true},
                         dunnock::NamedPath{"its journal", options.pool + ".journal", true},
                         dunnock::NamedPath{"the file", file, written}};
  if (dunnock::Status apart = dunnock::check_paths(paths); !apart) return apart;
  for (const int stream : {STDOUT_FILENO, STDERR_FILENO}) {
    const char* const name = stream == STDOUT_FILENO ? "standard output" : "standard error";
    if (dunnock::is_same_file(stream, options.pool))
      return dunnock::make_error(dunnock::ErrorCode::kInvalidArgument, std::string(name) + " is the pool itself");
    if (written && !file.empty() && dunnock::is_same_file(stream, file))
      return dunnock::make_error(
          dunnock::ErrorCode::kInvalidArgument,
          std::string(name) + " is the file to be written, so it can't hold the lines of standard output too");
  }
  return {};
}

int status_of(const dunnock::Error& error) {
  namespace tool = dunnock::tool;
  tool::complain("dunnock: {} ({})", error.message, to_string(error.code));
  switch (error.code) {
    case dunnock::ErrorCode::kCorrupt:
    case dunnock::ErrorCode::kNotADunnockPool: return tool::kDamaged;
    case dunnock::ErrorCode::kInvalidArgument: return tool::kUsage;
    default: return tool::kCannot;
  }
}

int run(int argc, char** argv) {
  namespace tool = dunnock::tool;
  Options options;
  Command chosen = nullptr;
  // An empty name is that of a variable that was not set, and must not stand for "all" or "the only one".
  const CLI::Validator not_empty(
      [](const std::string& text) { return text.empty() ? std::string("is empty") : std::string(); }, "", "not empty");
  // To CLI11 -1 is the greatest number of bytes.
  const CLI::Validator size_in_digits(
      [](const std::string& text) {
        const std::string_view unit =
            std::string_view(text).substr(std::min(text.find_first_not_of("0123456789"), text.size()));
        const bool fine = unit.size() != text.size() && std::all_of(unit.begin(), unit.end(), [](char c) {
                            return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
                          });
        return fine ? std::string() : text + " is no size: digits, and a unit such as k, m, g or t";
      },
      "", "size");
  CLI::App app("Looks into dunnock pools, checks them, and moves what they hold out and in.", "dunnock");
  app.set_version_flag("--version", DUNNOCK_VERSION);
  app.require_subcommand(1);
  app.footer("Exit status: 0 fine, 1 something is damaged, 2 usage, 3 anything else. See dunnock(1).");
  const auto add = [&](CLI::App& to, const char* name, const char* what, Command command) {
    CLI::App* sub = to.add_subcommand(name, what);
    sub->add_option("pool", options.pool, "the pool's file")->required()->check(not_empty);
    sub->callback([&chosen, command] { chosen = command; });
    return sub;
  };
  const auto with_json = [&](CLI::App* sub) { sub->add_flag("--json", options.json, "print JSON"); };
  const auto with_capacity = [&](CLI::App* sub, const char* what) {
    sub->add_flag("--create", options.create, what);
    sub->add_option("--capacity", options.capacity_bytes, "bytes of values that what is created can hold")
        ->transform(CLI::AsSizeValue(false))
        ->transform(size_in_digits)  // Comes first: each transform is put before the others.
        ->capture_default_str();
  };

  with_json(add(app, "info", "say what the pool holds", tool::info));
  CLI::App* check = add(app, "check", "verify everything in the pool", tool::check);
  check->add_option("names", options.names, "only these structures")->check(not_empty);
  with_json(check);
  CLI::App* dump = add(app, "dump", "write the entries of a store or index as text", tool::dump);
  dump->add_option("--name", options.name, "of the store or index, if there are several")->check(not_empty);
  dump->add_option("--output", options.file, "file; standard output if left out")->check(not_empty);
  CLI::App* load = add(app, "load", "put the entries of a dump into a store or index", tool::load);
  load->add_option("--name", options.name, "of the store or index, if there are several")->check(not_empty);
  load->add_option("--input", options.file, "file; - for standard input")->default_str("-")->check(not_empty);
  with_capacity(load, "make the pool and the store if they are not there");

  CLI::App* copy = add(app, "copy", "copy a pool that no process has open for writing", tool::copy);
  copy->add_option("to", options.file, "the copy's file, which must not be there")->required()->check(not_empty);

  CLI::App* checkpoint = app.add_subcommand("checkpoint", "what a checkpoint store holds");
  checkpoint->require_subcommand(1);
  const auto add_checkpoint = [&](const char* name, const char* what, Command command) {
    CLI::App* sub = add(*checkpoint, name, what, command);
    sub->add_option("--store", options.name, "name of the checkpoint store, if there are several")->check(not_empty);
    return sub;
  };
  const auto with_title = [&](CLI::App* sub, const char* what) {
    return sub->add_option("checkpoint", options.checkpoint, what)->check(not_empty);
  };
  const auto with_threads = [&](CLI::App* sub) {
    sub->add_option("--threads", options.threads, "that read and write")
        ->check(CLI::Range(1, 256))
        ->capture_default_str();
  };
  with_json(add_checkpoint("list", "all checkpoints", tool::checkpoint_list));
  CLI::App* show = add_checkpoint("show", "the tensors of a checkpoint", tool::checkpoint_show);
  with_title(show, "NAME or NAME@VERSION; the latest if left out")->required();
  with_json(show);
  with_title(add_checkpoint("verify", "read every byte and compare", tool::checkpoint_verify),
             "NAME or NAME@VERSION; all checkpoints if left out");
  CLI::App* diff = add_checkpoint("diff", "what distinguishes two checkpoints", tool::checkpoint_diff);
  with_title(diff, "the first: NAME or NAME@VERSION")->required();
  diff->add_option("other", options.other, "the second")->required()->check(not_empty);
  with_json(diff);
  CLI::App* export_ = add_checkpoint("export", "write a checkpoint as a safetensors file", tool::checkpoint_export);
  with_title(export_, "NAME or NAME@VERSION")->required();
  export_->add_option("file", options.file, "to be written")->required()->check(not_empty);
  with_threads(export_);
  CLI::App* import = add_checkpoint("import", "save a safetensors file as a checkpoint", tool::checkpoint_import);
  with_title(import, "NAME@VERSION; NAME: the version after the latest")->required();
  import->add_option("file", options.file, "to be read")->required()->check(not_empty);
  with_threads(import);
  with_capacity(import, "make the pool and the checkpoint store if they are not there");
  import->add_option("--chunk", options.chunk_bytes, "bytes of a chunk of a store that is created")
      ->transform(CLI::AsSizeValue(false))
      ->transform(size_in_digits)
      ->check(CLI::Range(64, 1 << 30))
      ->capture_default_str();
  with_title(add_checkpoint("delete", "remove a checkpoint and give its space back", tool::checkpoint_delete),
             "NAME@VERSION")
      ->required();
  CLI::App* retain = add_checkpoint("retain", "delete old versions of a name", tool::checkpoint_retain);
  with_title(retain, "NAME")->required();
  constexpr std::uint64_t kVersionsMost = 1ULL << 20;  // As a catalog has at most.
  retain->add_option("--last", options.keep_last, "keep so many of the newest, at least one")
      ->check(CLI::Range(std::uint64_t{1}, kVersionsMost))
      ->capture_default_str();
  retain->add_option("--every", options.keep_every, "keep the versions that are multiples of this, too; 0: no others")
      ->check(CLI::Range(std::uint64_t{0}, ~std::uint64_t{0} - 1))
      ->capture_default_str();
  add_checkpoint("collect", "give back what interrupted saves have left", tool::checkpoint_collect);
  add_checkpoint("forget", "remove catalog lines that are damaged; what they named is lost", tool::checkpoint_forget);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const std::string complaint =
        dunnock::explain_parse_error(app, error, {argv, static_cast<std::size_t>(argc)});
    (void)std::fputs(complaint.c_str(), stderr);
    return complaint.empty() ? tool::kFine : tool::kUsage;
  }
  if (options.file.empty() && *load) options.file = "-";
  if (const dunnock::Status apart = check_files(options, *dump || *export_ || *copy); !apart)
    return status_of(apart.error());
  const auto status = chosen(options);
  return status ? *status : status_of(status.error());
}

}  // namespace

int main(int argc, char** argv) {
  return dunnock::run_program("dunnock", dunnock::tool::kCannot, [&] { return run(argc, argv); });
}
