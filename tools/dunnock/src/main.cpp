// dunnock: looks into pools, checks them, and moves what they hold out and in.
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "dunnock/base/last_catch.hpp"
#include "options.hpp"

namespace {

using dunnock::tool::Options;
using Command = dunnock::Result<int> (*)(const Options&);

}  // namespace

int main(int argc, char** argv) try {
  namespace tool = dunnock::tool;
  Options options;
  Command chosen = nullptr;
  CLI::App app("Looks into dunnock pools, checks them, and moves what they hold out and in.", "dunnock");
  app.set_version_flag("--version", DUNNOCK_VERSION);
  app.require_subcommand(1);
  app.footer("Exit status: 0 fine, 1 something is damaged, 2 usage, 3 anything else. See dunnock(1).");
  const auto add = [&](CLI::App& to, const char* name, const char* what, Command command) {
    CLI::App* sub = to.add_subcommand(name, what);
    sub->add_option("pool", options.pool, "the pool's file")->required();
    sub->callback([&chosen, command] { chosen = command; });
    return sub;
  };
  const auto with_json = [&](CLI::App* sub) { sub->add_flag("--json", options.json, "print JSON"); };
  const auto with_capacity = [&](CLI::App* sub, const char* what) {
    sub->add_flag("--create", options.create, what);
    sub->add_option("--capacity", options.capacity_bytes, "bytes of values that what is created can hold")
        ->transform(CLI::AsSizeValue(false))
        ->capture_default_str();
  };

  with_json(add(app, "info", "say what the pool holds", tool::info));
  CLI::App* check = add(app, "check", "verify everything in the pool", tool::check);
  check->add_option("names", options.names, "only these structures");
  with_json(check);
  CLI::App* dump = add(app, "dump", "write the entries of a store or index as text", tool::dump);
  dump->add_option("--name", options.name, "of the store or index, if there are several");
  dump->add_option("--output", options.file, "file; standard output if left out");
  CLI::App* load = add(app, "load", "put the entries of a dump into a store or index", tool::load);
  load->add_option("--name", options.name, "of the store or index, if there are several");
  load->add_option("--input", options.file, "file; - for standard input")->default_str("-");
  with_capacity(load, "make the pool and the store if they are not there");

  CLI::App* checkpoint = app.add_subcommand("checkpoint", "what a checkpoint store holds");
  checkpoint->require_subcommand(1);
  const auto add_checkpoint = [&](const char* name, const char* what, Command command) {
    CLI::App* sub = add(*checkpoint, name, what, command);
    sub->add_option("--store", options.name, "name of the checkpoint store, if there are several");
    return sub;
  };
  const auto with_title = [&](CLI::App* sub, const char* what) {
    return sub->add_option("checkpoint", options.checkpoint, what);
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
  diff->add_option("other", options.other, "the second")->required();
  with_json(diff);
  CLI::App* export_ = add_checkpoint("export", "write a checkpoint as a safetensors file", tool::checkpoint_export);
  with_title(export_, "NAME or NAME@VERSION")->required();
  export_->add_option("file", options.file, "to be written")->required();
  with_threads(export_);
  CLI::App* import = add_checkpoint("import", "save a safetensors file as a checkpoint", tool::checkpoint_import);
  with_title(import, "NAME@VERSION; NAME: the version after the latest")->required();
  import->add_option("file", options.file, "to be read")->required();
  with_threads(import);
  with_capacity(import, "make the pool and the checkpoint store if they are not there");
  import->add_option("--chunk", options.chunk_bytes, "bytes of a chunk of a store that is created")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(64, 1 << 30))
      ->capture_default_str();
  with_title(add_checkpoint("delete", "remove a checkpoint and give its space back", tool::checkpoint_delete),
             "NAME@VERSION")
      ->required();
  CLI::App* retain = add_checkpoint("retain", "delete old versions of a name", tool::checkpoint_retain);
  with_title(retain, "NAME")->required();
  retain->add_option("--last", options.keep_last, "keep so many of the newest")->capture_default_str();
  retain->add_option("--every", options.keep_every, "keep the versions that are multiples of this, too; 0: no others")
      ->capture_default_str();
  add_checkpoint("collect", "give back what interrupted saves have left", tool::checkpoint_collect);
  add_checkpoint("forget", "remove catalog lines that are damaged; what they named is lost", tool::checkpoint_forget);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? tool::kFine : tool::kUsage;
  }
  if (options.file.empty() && *load) options.file = "-";
  const auto status = chosen(options);
  if (status) return *status;
  fmt::print(stderr, "dunnock: {} ({})\n", status.error().message, to_string(status.error().code));
  switch (status.error().code) {
    case dunnock::ErrorCode::kCorrupt:
    case dunnock::ErrorCode::kNotADunnockPool: return tool::kDamaged;
    case dunnock::ErrorCode::kInvalidArgument: return tool::kUsage;
    default: return tool::kCannot;
  }
} catch (...) {
  fmt::print(stderr, "dunnock: {}\n", dunnock::words_of_exception());
  return dunnock::tool::kCannot;
}
