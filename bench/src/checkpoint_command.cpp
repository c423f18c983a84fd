#include "commands.hpp"
namespace dunnock::bench {
void add_checkpoint_command(CLI::App&, Run&) {}
}  // namespace dunnock::bench
