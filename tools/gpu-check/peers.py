#!/usr/bin/env python3
"""What PyTorch takes for the cases of dunnock-gpu-check, in the same run on the same GPU.

    dunnock-gpu-check --list-cases > cases.jsonl
    peers.py --cases cases.jsonl [--seconds N] [--rehearse]

Prints one JSON object a line: first {"name": "torch", "version", "device"}, then for each case {"name", "ms"} with
"gb_per_s" or "tflops" (by the bytes and operations that the table says), or {"name", "error"}. --rehearse runs on the
CPU.
Exit codes: 0; 3 where there is no PyTorch or no GPU, after one line {"name": "torch", "error"}.

Each time is the median of eleven, by CUDA events. Inputs are random. Where one set of them would fit into the L2 cache,
so many sets are used in turn that three times the cache goes by between two uses of one. Calls shorter than 0.2 ms are
recorded in a CUDA graph, so that the host's time does not count.
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
        a = self.random(case, case["m"], case["k"])
        b = self.random(case, case["k"], case["n"])
        out = self.torch.empty(case["m"], case["n"], device=self.device, dtype=a.dtype)
        return lambda: self.torch.matmul(a, b, out=out)

    def layer_norm(self, case):
        x = self.random(case, case["rows"], case["columns"])
        weight = self.random(case, case["columns"])
        bias = self.random(case, case["columns"])
        return lambda: self.functional.layer_norm(x, (case["columns"],), weight, bias)

    def rms_norm(self, case):
        x = self.random(case, case["rows"], case["columns"])
        weight = self.random(case, case["columns"])
        return lambda: self.functional.rms_norm(x, (case["columns"],), weight)

    def cross_entropy(self, case):
        logits = self.random(case, case["rows"], case["classes"], gradient=True)
        targets = self.integers(case["classes"], case["rows"])

        def call():
            loss = self.functional.cross_entropy(logits, targets)
            return self.torch.autograd.grad(loss, logits)

        return call

    def gelu(self, case):
        x = self.random(case, case["n"])
        return lambda: self.functional.gelu(x, approximate="tanh")

    def dropout(self, case):
        x = self.random(case, case["n"])
        return lambda: self.functional.dropout(x, 0.1, training=True)

    def swiglu(self, case):
        a = self.random(case, case["rows"], case["columns"])
        b = self.random(case, case["rows"], case["columns"])
        return lambda: self.functional.silu(a) * b

    def adamw(self, case):
        weights = self.torch.nn.Parameter(self.random(case, case["n"]))
        weights.grad = self.random(case, case["n"])
        optimizer = self.torch.optim.AdamW([weights], fused=True)
        return optimizer.step

    def embedding(self, case):
        table = self.random(case, case["vocabulary"], case["columns"])
        tokens = self.integers(case["vocabulary"], case["tokens"])
        return lambda: self.functional.embedding(tokens, table)

    def gather_rows(self, case):
        table = self.random(case, case["rows"], case["columns"])
        rows = self.torch.randperm(case["rows"], device=self.device)[: case["count"]]
        out = self.torch.empty(case["count"], case["columns"], device=self.device, dtype=table.dtype)
        return lambda: self.torch.index_select(table, 0, rows, out=out)

    def scatter_rows(self, case):
        table = self.random(case, case["rows"], case["columns"])
        rows = self.torch.randperm(case["rows"], device=self.device)[: case["count"]]
        values = self.random(case, case["count"], case["columns"])
        return lambda: table.index_copy_(0, rows, values)

    def sum(self, case):
        x = self.random(case, case["n"])
        return lambda: self.torch.sum(x)

    def max(self, case):
        x = self.random(case, case["n"])
        return lambda: self.torch.max(x)

    def column_sum(self, case):
        x = self.random(case, case["rows"], case["columns"])
        return lambda: self.torch.sum(x, 0)

    def attention_inputs(self, case, gradient):
        shape = (case["batch"], case["heads"], case["tokens"], case["head"])
        return [self.random(case, *shape, gradient=gradient) for _ in range(3)]

    def attention(self, case):
        q, k, v = self.attention_inputs(case, gradient=False)
        return lambda: self.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def attention_backward(self, case):
        inputs = self.attention_inputs(case, gradient=True)
        out = self.functional.scaled_dot_product_attention(*inputs, is_causal=True)
        gradient = self.torch.randn_like(out)
        return lambda: self.torch.autograd.grad(out, inputs, gradient, retain_graph=True)

    def decode_attention(self, case):
        q = self.random(case, case["batch"], case["heads"], 1, case["head"])
        shape = (case["batch"], case["kv_heads"], case["context"], case["head"])
        k = self.random(case, *shape)
        v = self.random(case, *shape)
        return lambda: self.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    def convolution_inputs(self, case, gradient):
        layout = self.torch.channels_last
        images = self.random(case, case["batch"], case["in"], case["side"], case["side"])
        kernels = self.random(case, case["out"], case["in"], case["kernel"], case["kernel"])
        return [one.to(memory_format=layout).requires_grad_(gradient) for one in (images, kernels)]

    def convolve(self, case, inputs):
        return self.functional.conv2d(*inputs, stride=case["stride"], padding=case["padding"])

    def conv2d(self, case):
        inputs = self.convolution_inputs(case, gradient=False)
        return lambda: self.convolve(case, inputs)

    def conv2d_backward(self, case):
        inputs = self.convolution_inputs(case, gradient=True)
        out = self.convolve(case, inputs)
        gradient = self.torch.randn_like(out)
        return lambda: self.torch.autograd.grad(out, inputs, gradient, retain_graph=True)

    def max_pool(self, case):
        images = self.random(case, case["batch"], case["channels"], case["side"], case["side"])
        images = images.to(memory_format=self.torch.channels_last)
        return lambda: self.functional.max_pool2d(images, 3, stride=2, padding=1)


# ----- times ----------------------------------------------------------------------------------------------------------

ROUNDS = 11
SHORT_MS = 0.2
SETS_MAX = 64


class GpuClock:
    def __init__(self, torch):
        self.torch = torch
        properties = torch.cuda.get_device_properties(0)
        self.cache_bytes = getattr(properties, "L2_cache_size", 64 << 20)
        self.memory_bytes = properties.total_memory

    def sets(self, case):
        """So many sets of inputs that the cache has none of them when its turn comes again."""
        bytes_each = max(case["bytes"], 1)
        by_cache = math.ceil(3 * self.cache_bytes / bytes_each)
        by_memory = max(1, int(0.2 * self.memory_bytes / bytes_each))
        return max(1, min(by_cache, by_memory, SETS_MAX))

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
        for call in calls[:2] + calls[:2]:  # Kernels are loaded and chosen.
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
    def sets(self, _case):
        return 2

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
    calls = [make(case) for _ in range(clock.sets(case))]
    ms = clock.median_ms(calls)
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
