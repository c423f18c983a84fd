#include "dunnock/kernels/embedding.hpp"

#include "kernel_case.hpp"

namespace dunnock::bench {
namespace {

using namespace kernels;

template <class T>
KernelCase one_way(bool backward, std::size_t tokens, const EmbeddingShape& shape) {
  KernelCase one;
  one.kernel = backward ? "embedding backward" : "embedding";
  one.type = type_name<T>();
  one.shape =
      std::to_string(tokens) + " of " + std::to_string(shape.vocabulary) + " x " + std::to_string(shape.columns);
  one.bytes = static_cast<double>(sizeof(T)) * static_cast<double>(shape.columns) *
              static_cast<double>(backward ? tokens + shape.vocabulary : 2 * tokens);
  one.operation = {backward ? "embedding_backward" : "embedding",
                   {{"tokens", tokens}, {"vocabulary", shape.vocabulary}, {"columns", shape.columns}}};
  one.relative = kCaseRounding<T>;
  one.absolute = 1e-4;
  one.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const auto ids = values.integers<std::int32_t>(tokens, shape.vocabulary);
    const std::size_t table_size = shape.vocabulary * shape.columns;
    const auto from = values.normal<T>(backward ? tokens * shape.columns : table_size);
    const auto to = values.result<T>(backward ? table_size : tokens * shape.columns);
    const auto space = values.workspace<std::uint32_t>(
        std::max<std::size_t>(1, embedding_backward_workspace(tokens, shape, values.device())));
    return [=](device::Stream& stream, Form form) {
      if (!backward)
        run_form(form, Embedding<T>{.table = from, .positions = {}, .tokens = ids, .y = to, .shape = shape}, stream);
      if (backward)
        run_form(form,
                 EmbeddingBackward<T, T>{
                     .dy = from, .tokens = ids, .dtable = to, .adds = false, .shape = shape, .workspace = space},
                 stream);
    };
  };
  return one;
}

}  // namespace

std::vector<KernelCase> embedding_cases(CaseSize size) {
  const bool tiny = size == CaseSize::kTiny;
  const EmbeddingShape shape{.vocabulary = tiny ? 101U : 50257U, .columns = tiny ? 100U : 768U};
  const std::size_t tokens = tiny ? 333 : size == CaseSize::kCpu ? 16384 : 65536;
  return {one_way<float>(false, tokens, shape), one_way<device::Bf16>(false, tokens, shape),
          one_way<float>(true, tokens, shape), one_way<device::Bf16>(true, tokens, shape)};
}

}  // namespace dunnock::bench
