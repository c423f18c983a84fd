#!/usr/bin/env python3
"""What PyTorch takes for the cases of dunnock-gpu-check, in the same run on the same GPU.

    dunnock-gpu-check --list-cases > cases.jsonl
    peers.py --cases cases.jsonl [--seconds N] [--rehearse]

Prints one JSON object a line: first {"name": "torch", "version", "device"}, then for each case {"name", "ms"} with
"gb_per_s" or "tflops" (by the bytes and operations that the table says), or {"name", "error"}. --rehearse runs on the
CPU.
Exit codes: 0; 3 where there is no PyTorch or no GPU, after one line {"name": "torch", "error"}.

Each time is the median of eleven, by CUDA events. Inputs are random. Where one set of them is smaller than twice the L2
cache, so many sets are used in turn that three times the cache goes by between two uses of one. Calls shorter than
0.2 ms are recorded in a CUDA graph, so that the host's time does not count. The program does so with its own kernels.
"""

import argparse
import json
import math
import statistics
import sys
import time


def say(**fields):
    print(json.dumps(fields), flush=True)


def parse_arguments():
    parser = argparse.ArgumentParser(description="PyTorch's times for the cases of dunnock-gpu-check")
    parser.add_argument("--cases", required=True, help="what dunnock-gpu-check --list-cases prints")
    parser.add_argument("--seconds", type=float, default=120, help="cases that come later are not begun")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU")
    return parser.parse_args()


# ----- what each operation is: a function of the case that makes one set of inputs and returns a call on it -----------


class Operations:
    def __init__(self, torch, device):
        self.torch = torch
        self.functional = torch.nn.functional
        self.device = device

    def kind(self, case):
        return self.torch.bfloat16 if case["type"] == "bf16" else self.torch.float32

    def random(self, case, *shape, gradient=False):
        values = self.torch.randn(*shape, device=self.device, dtype=self.torch.float32).to(self.kind(case))
        return values.requires_grad_(gradient)

    def integers(self, limit, count):
        return self.torch.randint(0, limit, (count,), device=self.device)

    def matmul(self, case):
        def operand(rows, columns, transposed):
            return self.random(case, columns, rows).t() if transposed else self.random(case, rows, columns)

        a = operand(case["m"], case["k"], case["transpose_a"])
        b = operand(case["k"], case["n"], case["transpose_b"])
        out = self.torch.empty(case["m"], case["n"], device=self.device, dtype=a.dtype)
        return lambda: self.torch.matmul(a, b, out=out)

    def gradient_call(self, out, inputs):
        """The gradients of `inputs`, given one of `out`."""
        gradient = self.torch.randn_like(out)
        return lambda: self.torch.autograd.grad(out, inputs, gradient, retain_graph=True)

    # Norms: (rows, columns), and (rows, channels) over the rows.

    def layer_norm_inputs(self, case, gradient):
        columns = case["columns"]
        shapes = ((case["rows"], columns), (columns,), (columns,))
        return [self.random(case, *shape, gradient=gradient) for shape in shapes]

    def layer_norm(self, case):
        x, weight, bias = self.layer_norm_inputs(case, gradient=False)
        return lambda: self.functional.layer_norm(x, (case["columns"],), weight, bias)

    def layer_norm_backward(self, case):
        x, weight, bias = self.layer_norm_inputs(case, gradient=True)
        return self.gradient_call(self.functional.layer_norm(x, (case["columns"],), weight, bias), [x, weight, bias])

    def rms_norm(self, case):
        x, weight, _ = self.layer_norm_inputs(case, gradient=False)
        return lambda: self.functional.rms_norm(x, (case["columns"],), weight)

    def rms_norm_backward(self, case):
        x, weight, _ = self.layer_norm_inputs(case, gradient=True)
        return self.gradient_call(self.functional.rms_norm(x, (case["columns"],), weight), [x, weight])

    def batch_norm_inputs(self, case, gradient):
        # As images whose channels lie side by side: (1, channels, rows, 1).
        x = self.random(case, 1, case["rows"], 1, case["channels"]).permute(0, 3, 1, 2)
        x = x.detach().requires_grad_(gradient)
        weight = self.random(case, case["channels"], gradient=gradient)
        bias = self.random(case, case["channels"], gradient=gradient)
        return x, weight, bias

    def batch_norm(self, case):
        x, weight, bias = self.batch_norm_inputs(case, gradient=False)
        return lambda: self.functional.batch_norm(x, None, None, weight, bias, training=True)

    def batch_norm_backward(self, case):
        x, weight, bias = self.batch_norm_inputs(case, gradient=True)
        out = self.functional.batch_norm(x, None, None, weight, bias, training=True)
        return self.gradient_call(out, [x, weight, bias])

    # Losses and optimizers.

    def cross_entropy(self, case):
        logits = self.random(case, case["rows"], case["classes"], gradient=True)
        targets = self.integers(case["classes"], case["rows"])

        def call():
            loss = self.functional.cross_entropy(logits, targets)
            return self.torch.autograd.grad(loss, logits)

        return call

    def softmax(self, case):
        x = self.random(case, case["rows"], case["columns"])
        return lambda: self.torch.softmax(x, 1)

    def parameters(self, case):
        weights = [self.torch.nn.Parameter(self.random(case, case["n"])) for _ in range(case["tensors"])]
        for one in weights:
            one.grad = self.random(case, case["n"])
        return weights

    def adamw(self, case):
        # capturable: its count of steps is on the device, so that a graph can hold it.
        return self.torch.optim.AdamW(self.parameters(case), fused=True, capturable=self.device == "cuda").step

    def sgd(self, case):
        return self.torch.optim.SGD(self.parameters(case), lr=1e-3, momentum=0.9, weight_decay=0.01, fused=True).step

    # One value after the other: n of them, or rows of them.

    def activation(self, case, call):
        x = self.random(case, case["n"])
        return lambda: call(x)

    def activation_gradient(self, case, call):
        x = self.random(case, case["n"])
        dy = self.random(case, case["n"])
        return lambda: call(dy, x)

    def gelu_tanh(self, case):
        return self.activation(case, lambda x: self.functional.gelu(x, approximate="tanh"))

    def gelu_erf(self, case):
        return self.activation(case, self.functional.gelu)

    def silu(self, case):
        return self.activation(case, self.functional.silu)

    def relu(self, case):
        return self.activation(case, self.functional.relu)

    def gelu_tanh_backward(self, case):
        aten = self.torch.ops.aten
        return self.activation_gradient(case, lambda dy, x: aten.gelu_backward(dy, x, approximate="tanh"))

    def gelu_erf_backward(self, case):
        return self.activation_gradient(case, self.torch.ops.aten.gelu_backward)

    def silu_backward(self, case):
        return self.activation_gradient(case, self.torch.ops.aten.silu_backward)

    def relu_backward(self, case):
        aten = self.torch.ops.aten
        return self.activation_gradient(case, lambda dy, x: aten.threshold_backward(dy, x, 0))

    def gate_and_up(self, case, gradient):
        both = self.random(case, case["rows"], 2 * case["columns"], gradient=gradient)
        return both, both.chunk(2, dim=1)

    def swiglu(self, case):
        _, (gate, up) = self.gate_and_up(case, gradient=False)
        return lambda: self.functional.silu(gate) * up

    def swiglu_backward(self, case):
        both, (gate, up) = self.gate_and_up(case, gradient=True)
        return self.gradient_call(self.functional.silu(gate) * up, [both])

    def dropout(self, case):
        x = self.random(case, case["n"])
        return lambda: self.functional.dropout(x, 0.5, training=True)

    def random_uniform(self, case):
        x = self.random(case, case["n"])
        return x.uniform_

    def random_normal(self, case):
        x = self.random(case, case["n"])
        return x.normal_

    def add_scaled(self, case):
        a = self.random(case, case["n"])
        b = self.random(case, case["n"])
        return lambda: self.torch.add(a, b, alpha=0.5)

    def cast(self, case):
        x = self.random(case, case["n"])
        other = self.torch.float32 if case["type"] == "bf16" else self.torch.bfloat16
        return lambda: x.to(other)

    def bias_add(self, case):
        x = self.random(case, case["rows"], case["columns"])
        bias = self.random(case, case["columns"])
        return lambda: x + bias

    # Sums and the like.

    def column_sums(self, case):
        x = self.random(case, case["rows"], case["columns"])
        return lambda: self.torch.sum(x, 0)

    def sum_of_squares(self, case):
        # Its root, from one reading of x; x.square().sum() would read and write more.
        x = self.random(case, case["n"])
        return lambda: self.torch.linalg.vector_norm(x, dtype=self.torch.float32)

    def argmax_rows(self, case):
        x = self.random(case, case["rows"], case["columns"])
        return lambda: self.torch.argmax(x, 1)

    # Rows by number.

    def embedding(self, case):
        table = self.random(case, case["vocabulary"], case["columns"])
        tokens = self.integers(case["vocabulary"], case["tokens"])
        return lambda: self.functional.embedding(tokens, table)

    def embedding_backward(self, case):
        dy = self.random(case, case["tokens"], case["columns"])
        tokens = self.integers(case["vocabulary"], case["tokens"])
        backward = self.torch.ops.aten.embedding_dense_backward
        return lambda: backward(dy, tokens, case["vocabulary"], -1, False)

    def kept(self, case, dimension):
        """`count` of the rows or columns, ascending."""
        extent = case["rows"] if dimension == 0 else case["columns"]
        return self.torch.randperm(extent, device=self.device)[: case["count"]].sort().values

    def gather(self, case, dimension):
        table = self.random(case, case["rows"], case["columns"])
        kept = self.kept(case, dimension)
        return lambda: self.torch.index_select(table, dimension, kept)

    def scatter(self, case, dimension):
        table = self.random(case, case["rows"], case["columns"])
        kept = self.kept(case, dimension)
        values = table.index_select(dimension, kept)
        return lambda: table.index_copy_(dimension, kept, values)

    def gather_rows(self, case):
        return self.gather(case, 0)

    def gather_columns(self, case):
        return self.gather(case, 1)

    def scatter_rows(self, case):
        return self.scatter(case, 0)

    def scatter_columns(self, case):
        return self.scatter(case, 1)

    # Attention: (batch, heads, tokens, head).

    def attention_inputs(self, case, gradient):
        shape = (case["batch"], case["heads"], case["tokens"], case["head"])
        return [self.random(case, *shape, gradient=gradient) for _ in range(3)]

    def attend(self, case, inputs):
        return self.functional.scaled_dot_product_attention(*inputs, is_causal=bool(case["causal"]))

    def attention(self, case):
        inputs = self.attention_inputs(case, gradient=False)
        return lambda: self.attend(case, inputs)

    def attention_backward(self, case):
        inputs = self.attention_inputs(case, gradient=True)
        return self.gradient_call(self.attend(case, inputs), inputs)

    def decode_attention(self, case):
        q = self.random(case, case["batch"], case["heads"], 1, case["head"])
        shape = (case["batch"], case["kv_heads"], case["context"], case["head"])
        k = self.random(case, *shape)
        v = self.random(case, *shape)
        grouped = case["heads"] != case["kv_heads"]
        return lambda: self.functional.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)

    # Images, channels last: (batch, channels, side, side).

    def images(self, case, channels, side):
        return self.random(case, case["batch"], side, side, channels).permute(0, 3, 1, 2)

    def convolution_inputs(self, case):
        kernels = self.random(case, case["out"], case["kernel"], case["kernel"], case["in"] // case["groups"])
        return self.images(case, case["in"], case["side"]), kernels.permute(0, 3, 1, 2)

    def convolution(self, case):
        images, kernels = self.convolution_inputs(case)
        bias = self.random(case, case["out"])
        options = {"stride": case["stride"], "padding": case["padding"], "groups": case["groups"]}
        return lambda: self.functional.conv2d(images, kernels, bias, **options).relu_()

    def convolution_gradient(self, case, wanted):
        images, kernels = self.convolution_inputs(case)
        out_side = (case["side"] + 2 * case["padding"] - case["kernel"]) // case["stride"] + 1
        dy = self.images(case, case["out"], out_side)
        twice = lambda value: [value, value]  # noqa: E731
        backward = self.torch.ops.aten.convolution_backward
        bias = [case["out"]] if wanted[2] else None
        return lambda: backward(
            dy, images, kernels, bias, twice(case["stride"]), twice(case["padding"]), [1, 1], False, [0, 0],
            case["groups"], wanted
        )

    def convolution_input_gradient(self, case):
        return self.convolution_gradient(case, [True, False, False])

    def convolution_weight_gradient(self, case):
        return self.convolution_gradient(case, [False, True, True])

    def pool(self, case):
        images = self.images(case, case["channels"], case["side"])
        options = ([case["kernel"]] * 2, [case["stride"]] * 2, [case["padding"]] * 2)
        return images, options

    def max_pool(self, case):
        images, options = self.pool(case)
        return lambda: self.torch.ops.aten.max_pool2d_with_indices(images, *options)

    def max_pool_backward(self, case):
        images, options = self.pool(case)
        out, indices = self.torch.ops.aten.max_pool2d_with_indices(images, *options)
        dy = self.torch.randn_like(out)
        backward = self.torch.ops.aten.max_pool2d_with_indices_backward
        return lambda: backward(dy, images, *options, [1, 1], False, indices)

    def global_average_pool(self, case):
        x = self.random(case, case["batch"], case["positions"], case["channels"])
        return lambda: self.torch.mean(x, 1)


# ----- times ----------------------------------------------------------------------------------------------------------

ROUNDS = 11
SHORT_MS = 0.2
SETS_MAX = 64


class GpuClock:
    def __init__(self, torch):
        self.torch = torch
        properties = torch.cuda.get_device_properties(0)
        self.cache_bytes = getattr(properties, "L2_cache_size", 64 << 20)

    def sets(self, make):
        """So many sets of inputs that the cache has none of them when its turn comes again."""
        before = self.torch.cuda.memory_allocated()
        calls = [make()]
        bytes_each = max(self.torch.cuda.memory_allocated() - before, 1)
        if bytes_each >= 2 * self.cache_bytes:
            return calls
        count = min(math.ceil(3 * self.cache_bytes / bytes_each), SETS_MAX)
        return calls + [make() for _ in range(count - 1)]

    def once(self, work):
        begin = self.torch.cuda.Event(enable_timing=True)
        end = self.torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def recorded(self, calls, count):
        """A graph of `count` calls, or None where they can't be recorded."""
        try:
            graph = self.torch.cuda.CUDAGraph()
            with self.torch.cuda.graph(graph):
                for i in range(count):
                    calls[i % len(calls)]()
            return graph
        except Exception:  # pylint: disable=broad-except  (whatever an operation does that can't be recorded)
            self.torch.cuda.synchronize()
            return None

    def median_ms(self, calls):
        for call in calls[:2] + calls:  # Kernels are loaded and chosen.
            call()
        self.torch.cuda.synchronize()
        first = self.once(calls[-1])
        if first >= SHORT_MS:
            return statistics.median(self.once(calls[i % len(calls)]) for i in range(ROUNDS))
        count = max(len(calls), 20)
        graph = self.recorded(calls, count)
        if graph is None:
            work = lambda: [calls[i % len(calls)]() for i in range(count)]  # noqa: E731
        else:
            work = graph.replay
        work()
        return statistics.median(self.once(work) for _ in range(ROUNDS)) / count


class HostClock:
    def sets(self, make):
        return [make(), make()]

    def median_ms(self, calls):
        times = []
        for i in range(3):
            begin = time.perf_counter()
            calls[i % len(calls)]()
            times.append(1e3 * (time.perf_counter() - begin))
        return max(statistics.median(times), 1e-6)


def measure(operations, clock, case):
    make = getattr(operations, case["op"], None)
    if make is None:
        raise ValueError("no such operation: " + case["op"])
    ms = clock.median_ms(clock.sets(lambda: make(case)))
    if case["flops"] > 0:
        return {"ms": ms, "tflops": case["flops"] / ms * 1e-9}
    return {"ms": ms, "gb_per_s": case["bytes"] / ms * 1e-6}


def main():
    begin = time.monotonic()
    arguments = parse_arguments()
    try:
        import torch  # pylint: disable=import-outside-toplevel
    except ImportError as error:
        say(name="torch", error=f"PyTorch is not installed for {sys.executable}: {error}")
        return 3
    if not arguments.rehearse and not torch.cuda.is_available():
        say(name="torch", error=f"PyTorch {torch.__version__} finds no GPU")
        return 3
    if arguments.rehearse:
        torch.set_num_threads(1)
    device = "cpu" if arguments.rehearse else "cuda"
    name = "cpu" if arguments.rehearse else torch.cuda.get_device_name()
    say(name="torch", version=str(torch.__version__), device=name)
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    operations = Operations(torch, device)
    clock = HostClock() if arguments.rehearse else GpuClock(torch)
    with open(arguments.cases, encoding="utf-8") as file:
        cases = [json.loads(line) for line in file if line.strip()]
    for case in cases:
        if time.monotonic() - begin > arguments.seconds:
            say(name=case["name"], error="no time was left")
            continue
        try:
            say(name=case["name"], **measure(operations, clock, case))
        except Exception as error:  # pylint: disable=broad-except  (one case less, and the reason)
            say(name=case["name"], error=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        if not arguments.rehearse:
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
