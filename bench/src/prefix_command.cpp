#include "commands.hpp"
namespace dunnock::bench {
void add_prefix_command(CLI::App&, Run&) {}
}  // namespace dunnock::bench
