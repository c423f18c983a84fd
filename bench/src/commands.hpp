// The commands of dunnock-bench. Each adds itself to the program and says what is to be run when it is chosen.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace dunnock::bench {

using Run = std::function<int()>;  // The exit status.

void add_filter_command(CLI::App& app, Run& run);
void add_model_command(CLI::App& app, Run& run);
void add_index_command(CLI::App& app, Run& run);
void add_checkpoint_command(CLI::App& app, Run& run);
void add_prefix_command(CLI::App& app, Run& run);
void add_kernels_command(CLI::App& app, Run& run);
void add_collectives_command(CLI::App& app, Run& run);
void add_overlap_command(CLI::App& app, Run& run);
void add_schedules_command(CLI::App& app, Run& run);
void add_simulator_command(CLI::App& app, Run& run);
void add_training_command(CLI::App& app, Run& run);

}  // namespace dunnock::bench
