#!/usr/bin/env python3
"""PyTorch beside the training runtime: the five models of model/models.hpp, trained step by step, timed, or trained.

  training_peer.py about                                      what PyTorch there is
  training_peer.py steps REQUEST.json WEIGHTS BATCHES RESULT.json FINAL
                                                              some steps from given weights on given batches
  training_peer.py time REQUEST.json                          how long a step takes
  training_peer.py serve                                      the same, a round per line on standard input
  training_peer.py train REQUEST.json [WEIGHTS [FINAL]]       a run on a text or on MNIST, with its learning curve
  training_peer.py golden FOLDER                              writes double_models.json and training_steps.json there

WEIGHTS, BATCHES and FINAL are safetensors files. Needs torch (1.13 or later) and numpy, nothing else.
The models are those of torchvision and Hugging Face: with their weights they give the same logits.

A request is a JSON object; what it leaves out has the defaults below.
  model          {"kind": "mlp" | "cnn" | "resnet" | "densenet" | "gpt", and the fields of models.hpp}
  dtype          "f32", "f64", "bf16" (all of it, running statistics too, with masters in f32) or "autocast" (weights
                 in f32, products in bf16). For `time`, "bf16" is the faster of the last two
  optimizer      {"kind": "adamw" | "sgd", "learning_rate", "beta1", "beta2", "epsilon", "weight_decay", "momentum",
                 "nesterov", "clip"}: tensors of one dimension (norms, biases) do not decay. clip: gradients are
                 multiplied by min(1, clip / norm of all); 0: not
  schedule       {"steps", "warmup", "final_share"}: learning_rate * (step + 1) / warmup while step < warmup; then a
                 cosine from learning_rate to final_share * learning_rate, which it would reach at `steps`. Without
                 it: constant
  micro_batches  parts of equal size that the rows of a batch are taken in; the loss is the mean of the whole batch
  threads        of one operation; 0: PyTorch's choice
  device         "cpu" or "cuda"

`steps`: BATCHES has "tokens" (steps, rows, context + 1) int32 for a GPT, else "images" (steps, rows, height, width,
channels) or, for an MLP, (steps, rows, inputs) f32, and "labels" (steps, rows) int32. RESULT.json gets {"torch",
"losses", "gradient_norms"} (a number a step; norms before clipping), FINAL the weights and the running statistics.

`time` also takes rows, repeats (20), warmup (3), compile (false: torch.compile too), seed. Of the ways that PyTorch has
(formats of memory, bf16 or autocast, compiled or not) it takes the fastest. It prints {"torch", "device", "threads",
"way", "ways" (least milliseconds of a step in each, or why it does not run), "milliseconds": {"median", "min", "all"},
"parts" (median milliseconds of zero_grad, forward, backward, optimizer; the forward pass ends with the loss), "rate",
"unit", "loss"}.

`serve` reads a request of `time` in one line: prepares it and prints {"ready": true, "way", "ways", ...}. For each line
"round" it then prints what `time` prints. A line that fails gives {"error": why}. It ends with its input.

`train` takes rows, steps, seed, evaluate_every, and "text": PATH (its bytes; the last tenth validates; a batch is
windows of context + 1 bytes at random places) or "mnist": {"train_images", "train_labels", "test_images",
"test_labels"}, paths of IDX files, gzipped or not. It prints a line per evaluation: {"step", "seconds" (of training
alone), "learning_rate", "training_loss" (mean since the last line), "validation_loss", and for MNIST "accuracy"}. A
text's validation loss is that of all its windows, which do not overlap.

Values of the golden files come from a formula (tests/model/formula_values.hpp has it for C++):
  bits(name, i) = splitmix64's i-th output from the seed fnv1a64(name);   v(name, i) = (bits >> 48) / 32768 - 1
  weight (2 or more dimensions)   v * 2^(1 - e), e the least with 4^e >= size / shape[0]
  weight of a norm                1 + v / 4            bias   v / 4
  images                          2 v                  labels, tokens   (bits >> 32) % their number
Running means begin as 0, running variances as 1. All of them are exact in f32.
"""
import contextlib
import gzip
import json
import math
import pathlib
import statistics
import struct
import sys
import time
from collections import OrderedDict

import numpy
import torch
import torch.nn.functional as F
from torch import nn

# ----- models -------------------------------------------------------------------------------------------------------

DEFAULTS = {
    "mlp": {"inputs": 784, "hidden": [512, 512], "classes": 10},
    "cnn": {"image": {"height": 28, "width": 28, "channels": 1}, "stages": [[32, 32], [64, 64]], "batch_norm": False,
            "hidden": [128], "classes": 10},
    "resnet": {"image": {"height": 32, "width": 32, "channels": 3}, "blocks": [2, 2, 2], "width": 16,
               "bottleneck": False, "large_stem": False, "classes": 10},
    "densenet": {"image": {"height": 32, "width": 32, "channels": 3}, "blocks": [6, 12, 24, 16], "growth": 32,
                 "stem_width": 64, "bottleneck": 4, "large_stem": False, "classes": 10},
    "gpt": {"vocabulary": 256, "context": 128, "layers": 6, "heads": 4, "width": 128, "mlp_ratio": 4,
            "positions": "learned"},
}


def with_defaults(given, defaults, what):
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise ValueError(f"{what} has no {', '.join(unknown)}")
    return {**defaults, **given}


def model_options(given):
    kind = given.get("kind")
    if kind not in DEFAULTS:
        raise ValueError(f"model.kind is {kind!r}; there are {', '.join(DEFAULTS)}")
    return with_defaults(given, {"kind": kind, **DEFAULTS[kind]}, f"model {kind}")


class Mlp(nn.Module):
    def __init__(self, options):
        super().__init__()
        widths = [options["inputs"], *options["hidden"], options["classes"]]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = F.relu(layer(x), inplace=True)
        return self.layers[-1](x)


class Cnn(nn.Module):
    def __init__(self, options):
        super().__init__()
        image = options["image"]
        height, width, channels = image["height"], image["width"], image["channels"]
        features = []
        for stage in options["stages"]:
            for out in stage:
                features.append(nn.Conv2d(channels, out, 3, padding=1))
                if options["batch_norm"]:
                    features.append(nn.BatchNorm2d(out))
                features.append(nn.ReLU(inplace=True))
                channels = out
            features.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        self.features = nn.Sequential(*features)
        classifier = []
        inputs = height * width * channels
        for out in options["hidden"]:
            classifier += [nn.Linear(inputs, out), nn.ReLU(inplace=True)]
            inputs = out
        self.classifier = nn.Sequential(*classifier, nn.Linear(inputs, options["classes"]))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, x):
        return self.classifier(torch.flatten(self.features(x), 1))


def convolution(channels, out, kernel, stride=1):
    return nn.Conv2d(channels, out, kernel, stride=stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1 = convolution(channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(channels, width, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1 = convolution(channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = convolution(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut(channels, 4 * width, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


def shortcut(channels, out, stride):
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(convolution(channels, out, 1, stride), nn.BatchNorm2d(out))


class ResNet(nn.Module):
    def __init__(self, options):
        super().__init__()
        width = options["width"]
        block = Bottleneck if options["bottleneck"] else BasicBlock
        self.large_stem = options["large_stem"]
        self.conv1 = convolution(options["image"]["channels"], width, *((7, 2) if self.large_stem else (3, 1)))
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = len(options["blocks"])
        channels = width
        for stage, blocks in enumerate(options["blocks"]):
            made = []
            for i in range(blocks):
                made.append(block(channels, width << stage, 2 if i == 0 and stage > 0 else 1))
                channels = block.expansion * (width << stage)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*made))
        self.fc = nn.Linear(channels, options["classes"])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        if self.large_stem:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class DenseLayer(nn.Module):
    def __init__(self, channels, growth, bottleneck):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = convolution(channels, bottleneck * growth, 1)
        self.norm2 = nn.BatchNorm2d(bottleneck * growth)
        self.conv2 = convolution(bottleneck * growth, growth, 3)

    def forward(self, x):
        y = self.conv1(F.relu(self.norm1(x), inplace=True))
        return self.conv2(F.relu(self.norm2(y), inplace=True))


class DenseBlock(nn.Module):
    def __init__(self, channels, layers, growth, bottleneck):
        super().__init__()
        for i in range(layers):
            self.add_module(f"denselayer{i + 1}", DenseLayer(channels + i * growth, growth, bottleneck))

    def forward(self, x):
        values = [x]
        for layer in self.children():
            values.append(layer(torch.cat(values, 1)))
        return torch.cat(values, 1)


class DenseNet(nn.Module):
    def __init__(self, options):
        super().__init__()
        channels, growth = options["stem_width"], options["growth"]
        in_channels = options["image"]["channels"]
        parts = OrderedDict(conv0=convolution(in_channels, channels, *((7, 2) if options["large_stem"] else (3, 1))),
                            norm0=nn.BatchNorm2d(channels), relu0=nn.ReLU(inplace=True))
        if options["large_stem"]:
            parts["pool0"] = nn.MaxPool2d(3, stride=2, padding=1)
        for i, layers in enumerate(options["blocks"]):
            parts[f"denseblock{i + 1}"] = DenseBlock(channels, layers, growth, options["bottleneck"])
            channels += layers * growth
            if i + 1 < len(options["blocks"]):
                parts[f"transition{i + 1}"] = nn.Sequential(OrderedDict(
                    norm=nn.BatchNorm2d(channels), relu=nn.ReLU(inplace=True),
                    conv=convolution(channels, channels // 2, 1), pool=nn.AvgPool2d(2)))
                channels //= 2
        parts["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(parts)
        self.classifier = nn.Linear(channels, options["classes"])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x):
        x = F.relu(self.features(x), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class StoredInOut(nn.Module):
    """A linear layer whose weight is (in, out), as GPT-2 has it."""

    def __init__(self, inputs, outputs, deviation):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * deviation)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        y = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return y.view(*x.shape[:-1], -1)


class Attention(nn.Module):
    def __init__(self, options):
        super().__init__()
        width = options["width"]
        self.heads = options["heads"]
        self.c_attn = StoredInOut(width, 3 * width, 0.02)
        self.c_proj = StoredInOut(width, width, 0.02 / math.sqrt(2 * options["layers"]))
        self.rotary = options["positions"] == "rotary"
        if self.rotary:
            pairs = width // self.heads // 2
            angles = torch.outer(torch.arange(options["context"], dtype=torch.float64),
                                 10000 ** (-torch.arange(pairs, dtype=torch.float64) / pairs))
            # In f32 in f32 models, as tables are; a model in double is made in double.
            self.register_buffer("cosines", angles.cos().to(torch.get_default_dtype()), persistent=False)
            self.register_buffer("sines", angles.sin().to(torch.get_default_dtype()), persistent=False)

    def turned(self, x):
        a, b = x.chunk(2, -1)
        cosines, sines = self.cosines[:x.shape[-2]], self.sines[:x.shape[-2]]
        return torch.cat((a * cosines - b * sines, b * cosines + a * sines), -1)

    def forward(self, x):
        rows, tokens, width = x.shape
        q, k, v = (part.view(rows, tokens, self.heads, -1).transpose(1, 2) for part in self.c_attn(x).chunk(3, -1))
        if self.rotary:
            q, k = self.turned(q).to(v.dtype), self.turned(k).to(v.dtype)
        if hasattr(F, "scaled_dot_product_attention"):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            future = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu(1)
            scores = (q @ k.transpose(-1, -2)) * (1 / math.sqrt(q.shape[-1]))
            y = torch.softmax(scores.masked_fill(future, -math.inf), -1) @ v
        return self.c_proj(y.transpose(1, 2).reshape(rows, tokens, width))


class GptMlp(nn.Module):
    def __init__(self, options):
        super().__init__()
        width, inner = options["width"], options["mlp_ratio"] * options["width"]
        self.c_fc = StoredInOut(width, inner, 0.02)
        self.c_proj = StoredInOut(inner, width, 0.02 / math.sqrt(2 * options["layers"]))

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class GptBlock(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.ln_1 = nn.LayerNorm(options["width"])
        self.attn = Attention(options)
        self.ln_2 = nn.LayerNorm(options["width"])
        self.mlp = GptMlp(options)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Gpt(nn.Module):
    def __init__(self, options):
        super().__init__()
        if options["positions"] not in ("learned", "rotary"):
            raise ValueError(f"positions is {options['positions']!r}; there are learned, rotary")
        width = options["width"]
        self.wte = nn.Embedding(options["vocabulary"], width)
        nn.init.normal_(self.wte.weight, std=0.02)
        if options["positions"] == "learned":
            self.wpe = nn.Embedding(options["context"], width)
            nn.init.normal_(self.wpe.weight, std=0.02)
        self.h = nn.ModuleList(GptBlock(options) for _ in range(options["layers"]))
        self.ln_f = nn.LayerNorm(width)

    def forward(self, tokens):
        x = self.wte(tokens)
        if hasattr(self, "wpe"):
            x = x + self.wpe.weight[:tokens.shape[1]]
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)


def make_model(options):
    return {"mlp": Mlp, "cnn": Cnn, "resnet": ResNet, "densenet": DenseNet, "gpt": Gpt}[options["kind"]](options)


def loss_of(model, inputs, targets):
    """Mean cross-entropy. inputs (rows, ...), targets (rows) or (rows, tokens)."""
    logits = model(inputs)
    if logits.dtype == torch.bfloat16:
        logits = logits.float()
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def inputs_of(options, tensors, dtype):
    """(inputs, targets) as the model takes them, of one batch {"tokens"} or {"images", "labels"}."""
    if options["kind"] == "gpt":
        tokens = tensors["tokens"].long()
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    images = tensors["images"].to(dtype)
    # (rows, height, width, channels) lies in memory as PyTorch's channels_last format does.
    images = images.flatten(1) if options["kind"] == "mlp" else images.permute(0, 3, 1, 2)
    return images, tensors["labels"].long()


# ----- safetensors --------------------------------------------------------------------------------------------------

SAFETENSORS_TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16,
                     "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8}


def read_safetensors(path):
    """Eight bytes: the length of a JSON header; the header; the values, at offsets that the header names."""
    data = pathlib.Path(path).read_bytes()
    length = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:8 + length])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        values = torch.frombuffer(bytearray(data[begin:end]), dtype=SAFETENSORS_TYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def write_safetensors(path, tensors):
    names = {dtype: name for name, dtype in SAFETENSORS_TYPES.items()}
    header, pieces, offset = {}, [], 0
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        piece = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.dim() else tensor.numpy().tobytes()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [offset, offset + len(piece)]}
        pieces.append(piece)
        offset += len(piece)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(pieces))


# ----- steps --------------------------------------------------------------------------------------------------------

OPTIMIZER = {"kind": "adamw", "learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0,
             "momentum": 0, "nesterov": False, "clip": 0}
SCHEDULE = {"steps": 1, "warmup": 0, "final_share": 0}
REQUEST = {"model": None, "dtype": "f32", "optimizer": {}, "schedule": None, "micro_batches": 1, "threads": 0,
           "device": "cpu"}
DTYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "autocast": torch.float32}


def request_of(given, more):
    request = with_defaults(given, {**REQUEST, **more}, "the request")
    request["model"] = model_options(request["model"] or {})
    request["optimizer"] = with_defaults(request["optimizer"], OPTIMIZER, "optimizer")
    if request["optimizer"]["kind"] not in ("adamw", "sgd"):
        raise ValueError(f"optimizer.kind is {request['optimizer']['kind']!r}; there are adamw, sgd")
    if request["schedule"] is not None:
        request["schedule"] = with_defaults(request["schedule"], SCHEDULE, "schedule")
    if request["dtype"] not in DTYPES:
        raise ValueError(f"dtype is {request['dtype']!r}; there are {', '.join(DTYPES)}")
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    if request["device"] == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    return request


def learning_rate_at(step, learning_rate, schedule):
    if schedule is None:
        return learning_rate
    if step < schedule["warmup"]:
        return learning_rate * (step + 1) / schedule["warmup"]
    share = (step - schedule["warmup"]) / max(1, schedule["steps"] - schedule["warmup"])
    low = schedule["final_share"] * learning_rate
    return low + (learning_rate - low) * 0.5 * (1 + math.cos(math.pi * min(1, share)))


class Trainer:
    """A model and its optimizer; step() is one whole step."""

    def __init__(self, request, weights=None, memory_format=torch.contiguous_format, fast=False, compiled=False):
        self.options, self.optimizer_options = request["model"], request["optimizer"]
        self.micro_batches, self.device, self.dtype = request["micro_batches"], request["device"], request["dtype"]
        double = self.dtype == "f64"
        torch.set_default_dtype(torch.float64 if double else torch.float32)
        self.model = make_model(self.options)
        torch.set_default_dtype(torch.float32)
        if weights is not None:
            self.load(weights)
        self.model.to(self.device)
        if memory_format == torch.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.masters = None
        if self.dtype == "bf16":
            self.masters = {name: nn.Parameter(p.detach().clone()) for name, p in self.model.named_parameters()}
            self.model.bfloat16()
        self.memory_format = memory_format
        self.loss_function = torch.compile(loss_of) if compiled else loss_of
        self.optimizer = self.make_optimizer(fast)

    def load(self, weights):
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        if missing or unexpected:
            raise ValueError(f"weights lack {missing} and have {unexpected} besides")

    def trained(self):
        return self.masters if self.masters is not None else dict(self.model.named_parameters())

    def make_optimizer(self, fast):
        o = self.optimizer_options
        parameters = list(self.trained().values())
        groups = [{"params": [p for p in parameters if p.dim() >= 2], "weight_decay": o["weight_decay"]},
                  {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0}]
        groups = [group for group in groups if group["params"]]

        def make(**how):
            if o["kind"] == "adamw":
                return torch.optim.AdamW(groups, lr=o["learning_rate"], betas=(o["beta1"], o["beta2"]),
                                         eps=o["epsilon"], **how)
            return torch.optim.SGD(groups, lr=o["learning_rate"], momentum=o["momentum"], nesterov=o["nesterov"], **how)

        if fast:
            for how in ({"fused": True}, {"foreach": True}):
                with contextlib.suppress(TypeError, RuntimeError, ValueError):
                    return make(**how)
        return make()

    def to_device(self, batch):
        inputs, targets = inputs_of(self.options, batch, DTYPES[self.dtype])
        if inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=self.memory_format)
        return inputs.to(self.device), targets.to(self.device)

    def set_learning_rate(self, value):
        for group in self.optimizer.param_groups:
            group["lr"] = value

    def zero_grad(self):
        self.model.zero_grad(set_to_none=True)

    def forward(self, inputs, targets):
        if self.dtype != "autocast":
            return self.loss_function(self.model, inputs, targets)
        with torch.autocast(self.device, dtype=torch.bfloat16):
            return self.loss_function(self.model, inputs, targets)

    def forward_backward(self, inputs, targets):
        """The mean loss of all micro-batches; gradients are its gradients."""
        rows = inputs.shape[0]
        if rows % self.micro_batches:
            raise ValueError(f"{rows} rows in {self.micro_batches} micro-batches")
        size, total = rows // self.micro_batches, 0
        for begin in range(0, rows, size):
            loss = self.forward(inputs[begin:begin + size], targets[begin:begin + size]) / self.micro_batches
            loss.backward()
            total += loss.detach()
        return total

    def gradient_norm(self):
        squares = [p.grad.to(torch.float64 if self.dtype == "f64" else torch.float32).square().sum()
                   for p in self.model.parameters()]
        return torch.stack(squares).sum().sqrt()

    def clip_by(self, norm):
        factor = torch.clamp(self.optimizer_options["clip"] / norm, max=1)
        for p in self.model.parameters():
            p.grad.mul_(factor.to(p.grad.dtype))

    def update(self):
        if self.masters is None:
            self.optimizer.step()
            return
        pairs = list(zip(self.masters.values(), self.model.parameters()))
        for master, p in pairs:
            master.grad = p.grad.float()
        self.optimizer.step()
        with torch.no_grad():
            if hasattr(torch, "_foreach_copy_"):
                torch._foreach_copy_([p for _, p in pairs], [master for master, _ in pairs])
            else:
                for master, p in pairs:
                    p.copy_(master)

    def step(self, inputs, targets):
        """(loss, norm of the gradients before clipping)"""
        self.zero_grad()
        loss = self.forward_backward(inputs, targets)
        norm = self.gradient_norm()
        if self.optimizer_options["clip"]:
            self.clip_by(norm)
        self.update()
        return loss, norm

    def state(self):
        """Weights (masters where there are some) and running statistics, by name."""
        state = {name: value for name, value in self.model.state_dict().items() if
                 not name.endswith("num_batches_tracked")}
        for name, value in self.trained().items():
            state[name] = value.detach()
        return state


def run_steps(given, weights_path, batches_path, result_path, final_path):
    request = request_of(given, {})
    trainer = Trainer(request, read_safetensors(weights_path))
    batches = read_safetensors(batches_path)
    steps = len(next(iter(batches.values())))
    result = {"torch": torch.__version__, "losses": [], "gradient_norms": []}
    for step in range(steps):
        trainer.set_learning_rate(
            learning_rate_at(step, request["optimizer"]["learning_rate"], request["schedule"]))
        loss, norm = trainer.step(*trainer.to_device({name: tensor[step] for name, tensor in batches.items()}))
        result["losses"].append(loss.item())
        result["gradient_norms"].append(norm.item())
    write_safetensors(final_path, trainer.state())
    pathlib.Path(result_path).write_text(json.dumps(result) + "\n", encoding="utf-8")


# ----- time ---------------------------------------------------------------------------------------------------------

TIME = {"rows": 32, "repeats": 20, "warmup": 3, "compile": False, "seed": 0}
TURNS, TRIALS = 2, 4
PARTS = ("zero_grad", "forward", "backward", "optimizer")


def random_batch(options, rows, generator):
    if options["kind"] == "gpt":
        return {"tokens": torch.randint(options["vocabulary"], (rows, options["context"] + 1), generator=generator)}
    labels = torch.randint(options["classes"], (rows,), generator=generator)
    if options["kind"] == "mlp":
        return {"images": torch.randn(rows, options["inputs"], generator=generator), "labels": labels}
    image = options["image"]
    shape = (rows, image["height"], image["width"], image["channels"])
    return {"images": torch.randn(shape, generator=generator), "labels": labels}


class Timing:
    """A prepared model: in the fastest of PyTorch's ways."""

    def __init__(self, given):
        self.request = request_of(given, TIME)
        self.options = self.request["model"]
        generator = torch.Generator().manual_seed(self.request["seed"])
        self.batch = random_batch(self.options, self.request["rows"], generator)
        self.ways, made = {}, {}
        for way in self.candidates():
            name = ", ".join(way)
            try:
                made[name] = self.make(way)
                for _ in range(self.request["warmup"]):
                    self.timed_step(*made[name])
            except Exception as error:  # What this PyTorch can't do is no way of its.
                self.ways[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                made.pop(name, None)
        if not made:
            raise RuntimeError(f"PyTorch ran in none of its ways: {self.ways}")
        # In turn, since others may be at work on this machine; some steps each time, since threads of the way before
        # may still spin; and the least counts.
        for _ in range(TURNS):
            for name, way in made.items():
                took = [sum(self.timed_step(*way)) for _ in range(TRIALS)]
                self.ways[name] = min(self.ways.get(name, math.inf), *took)
        self.way = min(made, key=self.ways.get)
        self.trainer, self.tensors = made[self.way]

    def candidates(self):
        dtypes = ["bf16", "autocast"] if self.request["dtype"] == "bf16" else [self.request["dtype"]]
        formats = ["contiguous"] if self.options["kind"] in ("mlp", "gpt") else ["contiguous", "channels_last"]
        runs = ["eager", "compiled"] if self.request["compile"] else ["eager"]
        return [(dtype, memory, run) for dtype in dtypes for memory in formats for run in runs]

    def make(self, way):
        dtype, memory, run = way
        torch.manual_seed(self.request["seed"])
        trainer = Trainer({**self.request, "dtype": dtype}, fast=True, compiled=run == "compiled",
                          memory_format=torch.channels_last if memory == "channels_last" else torch.contiguous_format)
        return trainer, trainer.to_device(self.batch)

    def now(self):
        if self.request["device"] == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() * 1e3

    def timed_step(self, trainer, tensors):
        """Milliseconds of each of PARTS. With micro-batches, "forward" is the passes of all, both ways."""
        times = [self.now()]
        trainer.zero_grad()
        times.append(self.now())
        if trainer.micro_batches == 1:
            loss = trainer.forward(*tensors)
            times.append(self.now())
            loss.backward()
        else:
            loss = trainer.forward_backward(*tensors)
            times.append(self.now())
        times.append(self.now())
        clip = trainer.optimizer_options["clip"]
        if clip:
            torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), clip)
        trainer.update()
        times.append(self.now())
        self.loss = loss.detach()
        return [b - a for a, b in zip(times, times[1:])]

    def about(self):
        return {"torch": torch.__version__, "device": device_name(self.request["device"]),
                "threads": torch.get_num_threads(), "way": self.way, "ways": self.ways}

    def round(self):
        self.timed_step(self.trainer, self.tensors)  # Wakes threads and fills caches.
        steps = [self.timed_step(self.trainer, self.tensors) for _ in range(self.request["repeats"])]
        whole = [sum(step) for step in steps]
        median = statistics.median(whole)
        tokens = self.options["context"] if self.options["kind"] == "gpt" else 1
        return {**self.about(), "milliseconds": {"median": median, "min": min(whole), "all": whole},
                "parts": {part: statistics.median(times) for part, times in zip(PARTS, zip(*steps))},
                "rate": self.request["rows"] * tokens / median * 1e3,
                "unit": "tokens/s" if self.options["kind"] == "gpt" else "images/s", "loss": self.loss.item()}


def device_name(device):
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def serve():
    timing = None
    for line in sys.stdin:
        try:
            if line.strip() == "round":
                if timing is None:
                    raise ValueError("a round before any request")
                answer = timing.round()
            else:
                timing = None  # Its memory is free before the next one's is taken.
                timing = Timing(json.loads(line))
                answer = {"ready": True, **timing.about()}
        except Exception as error:  # The caller reads it, and may ask for something else.
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


# ----- train --------------------------------------------------------------------------------------------------------

TRAIN = {"rows": 32, "steps": 1000, "seed": 0, "evaluate_every": 100, "text": None, "mnist": None}


class Text:
    """Windows of a file's bytes; the last tenth validates."""

    def __init__(self, path, request):
        data = torch.from_numpy(numpy.frombuffer(pathlib.Path(path).read_bytes(), dtype=numpy.uint8).copy())
        if request["model"]["kind"] != "gpt" or request["model"]["vocabulary"] < 256:
            raise ValueError("a text needs a GPT of at least 256 tokens")
        self.context, self.rows = request["model"]["context"], request["rows"]
        cut = len(data) * 9 // 10
        self.training, self.validation = data[:cut], data[cut:]
        self.generator = torch.Generator().manual_seed(request["seed"])

    def windows(self, data, begins):
        return {"tokens": torch.stack([data[b:b + self.context + 1] for b in begins])}

    def next(self):
        begins = torch.randint(len(self.training) - self.context, (self.rows,), generator=self.generator)
        return self.windows(self.training, begins.tolist())

    def parts(self):
        begins = list(range(0, len(self.validation) - self.context, self.context))
        for i in range(0, len(begins), self.rows):
            yield self.windows(self.validation, begins[i:i + self.rows])


class Mnist:
    """Images in a new order each epoch; what does not fill a batch at its end is left out."""

    def __init__(self, paths, request):
        self.images, self.labels = (self.read(paths[f"train_{what}"]) for what in ("images", "labels"))
        self.test = [self.read(paths[f"test_{what}"]) for what in ("images", "labels")]
        self.rows = request["rows"]
        self.generator = torch.Generator().manual_seed(request["seed"])
        self.order, self.at = [], 0

    @staticmethod
    def read(path):
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            data = file.read()
        dimensions = data[3]
        shape = struct.unpack_from(f">{dimensions}I", data, 4)
        return torch.from_numpy(numpy.frombuffer(data, numpy.uint8, offset=4 + 4 * dimensions).reshape(shape).copy())

    @staticmethod
    def batch(images, labels):
        return {"images": ((images.float() / 255 - 0.1307) / 0.3081).unsqueeze(-1), "labels": labels}

    def next(self):
        if self.at + self.rows > len(self.order):
            self.order, self.at = torch.randperm(len(self.images), generator=self.generator), 0
        chosen = self.order[self.at:self.at + self.rows]
        self.at += self.rows
        return self.batch(self.images[chosen], self.labels[chosen])

    def parts(self):
        for i in range(0, len(self.test[0]), 500):
            yield self.batch(self.test[0][i:i + 500], self.test[1][i:i + 500])


@torch.no_grad()
def evaluate(trainer, data):
    trainer.model.eval()
    loss, right, count, rows = 0.0, 0, 0, 0
    for part in data.parts():
        inputs, targets = trainer.to_device(part)
        with torch.autocast(trainer.device, dtype=torch.bfloat16) if trainer.dtype == "autocast" else \
                contextlib.nullcontext():
            logits = trainer.model(inputs)
        logits = logits.reshape(-1, logits.shape[-1])
        logits = logits.float() if logits.dtype == torch.bfloat16 else logits
        loss += F.cross_entropy(logits, targets.reshape(-1), reduction="sum").item()
        right += (logits.argmax(-1) == targets.reshape(-1)).sum().item()
        count += targets.numel()
        rows += len(targets)
    trainer.model.train()
    found = {"validation_loss": loss / count}
    return found if isinstance(data, Text) else {**found, "accuracy": right / count}


def train(given, weights_path=None, final_path=None):
    request = request_of(given, TRAIN)
    if (request["text"] is None) == (request["mnist"] is None):
        raise ValueError("either text or mnist")
    data = Text(request["text"], request) if request["text"] else Mnist(request["mnist"], request)
    torch.manual_seed(request["seed"])
    trainer = Trainer(request, read_safetensors(weights_path) if weights_path else None, fast=True)
    seconds, losses = 0.0, []
    for step in range(request["steps"]):
        begin = time.perf_counter()
        rate = learning_rate_at(step, request["optimizer"]["learning_rate"], request["schedule"])
        trainer.set_learning_rate(rate)
        trainer.zero_grad()
        losses.append(trainer.forward_backward(*trainer.to_device(data.next())))
        if request["optimizer"]["clip"]:
            trainer.clip_by(trainer.gradient_norm())
        trainer.update()
        if (step + 1) % request["evaluate_every"] == 0 or step + 1 == request["steps"]:
            mean = torch.stack(losses).mean().item()  # Waits for the device.
            seconds += time.perf_counter() - begin
            print(json.dumps({"step": step + 1, "seconds": seconds, "learning_rate": rate, "training_loss": mean,
                              **evaluate(trainer, data)}), flush=True)
            losses = []
        else:
            seconds += time.perf_counter() - begin
    if final_path:
        write_safetensors(final_path, trainer.state())


# ----- golden files -------------------------------------------------------------------------------------------------

MASK = (1 << 64) - 1


def formula_bits(name, count):
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 & MASK
    with numpy.errstate(over="ignore"):
        z = numpy.uint64(seed) + numpy.arange(1, count + 1, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        return z ^ (z >> numpy.uint64(31))


def formula_unit(name, shape):
    bits = formula_bits(name, math.prod(shape))
    return torch.from_numpy((bits >> numpy.uint64(48)).astype(numpy.float64) / 32768 - 1).reshape(shape)


def formula_integers(name, shape, limit):
    bits = formula_bits(name, math.prod(shape)) >> numpy.uint64(32)
    return torch.from_numpy((bits % numpy.uint64(limit)).astype(numpy.int64)).reshape(shape)


def formula_weight(name, shape):
    unit = formula_unit(name, shape)
    if name.endswith("running_mean"):
        return torch.zeros_like(unit)
    if name.endswith("running_var"):
        return torch.ones_like(unit)
    if len(shape) >= 2:
        e = 0
        while 4 ** e < math.prod(shape) // shape[0]:
            e += 1
        return unit * 2.0 ** (1 - e)
    return 1 + unit / 4 if name.endswith("weight") else unit / 4


def formula_weights(options):
    return {name: formula_weight(name, tuple(value.shape)) for name, value in make_model(options).state_dict().items()
            if not name.endswith("num_batches_tracked")}


def formula_batches(options, steps, rows):
    if options["kind"] == "gpt":
        return {"tokens": formula_integers("tokens", (steps, rows, options["context"] + 1), options["vocabulary"])}
    if options["kind"] == "mlp":
        images = (steps, rows, options["inputs"])
    else:
        images = (steps, rows, *(options["image"][side] for side in ("height", "width", "channels")))
    return {"images": 2 * formula_unit("images", images),
            "labels": formula_integers("labels", (steps, rows), options["classes"])}


def image(height, width, channels):
    return {"height": height, "width": width, "channels": channels}


# Small and awkward. "rows" is a multiple of the micro-batches of all its runs.
TINY = {
    "mlp": (6, {"kind": "mlp", "inputs": 13, "hidden": [17, 9], "classes": 5}),
    "mlp without hidden layers": (3, {"kind": "mlp", "inputs": 11, "hidden": [], "classes": 3}),
    "cnn": (6, {"kind": "cnn", "image": image(9, 11, 3), "stages": [[5, 6], [7]], "hidden": [10], "classes": 4}),
    "cnn with batch norm": (6, {"kind": "cnn", "image": image(10, 7, 2), "stages": [[4], [6, 5]], "batch_norm": True,
                                "hidden": [], "classes": 3}),
    "resnet": (6, {"kind": "resnet", "image": image(9, 7, 3), "blocks": [2, 1], "width": 6, "classes": 5}),
    "resnet of bottlenecks": (6, {"kind": "resnet", "image": image(23, 19, 3), "blocks": [1, 2], "width": 3,
                                  "bottleneck": True, "large_stem": True, "classes": 6}),
    "densenet": (6, {"kind": "densenet", "image": image(9, 8, 3), "blocks": [2, 3], "growth": 3, "stem_width": 7,
                     "bottleneck": 2, "classes": 5}),
    "densenet with a large stem": (5, {"kind": "densenet", "image": image(33, 29, 1), "blocks": [2, 1, 1], "growth": 4,
                                       "stem_width": 6, "bottleneck": 3, "large_stem": True, "classes": 4}),
    "gpt": (6, {"kind": "gpt", "vocabulary": 29, "context": 11, "layers": 2, "heads": 3, "width": 12}),
    "gpt with rotary positions": (4, {"kind": "gpt", "vocabulary": 31, "context": 9, "layers": 3, "heads": 2,
                                      "width": 20, "mlp_ratio": 3, "positions": "rotary"}),
}

# An epsilon well above the rounding errors of f32 in gradients: some are zero in truth (biases of a convolution in
# front of a batch norm, of keys), and AdamW with 1e-8 makes whole steps of their rounding errors.
ADAMW = {"kind": "adamw", "learning_rate": 0.004, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-4, "weight_decay": 0.1}
SGD = {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9}
RUNS = [
    ("mlp", 1, {**ADAMW, "epsilon": 1e-8}),
    ("mlp", 3, {**SGD, "nesterov": True, "weight_decay": 0.01, "clip": 0.5}),
    ("mlp without hidden layers", 1, {"kind": "sgd", "learning_rate": 0.1}),
    ("cnn", 2, {**ADAMW, "clip": 1.0}),
    ("cnn", 1, {**SGD, "learning_rate": 0.02}),
    ("cnn with batch norm", 1, {**ADAMW, "epsilon": 1e-2, "weight_decay": 0}),
    ("cnn with batch norm", 2, {**SGD, "clip": 0.7}),
    ("resnet", 1, ADAMW),
    ("resnet", 2, {**SGD, "weight_decay": 0.001}),
    ("resnet of bottlenecks", 1, {**SGD, "nesterov": True}),
    ("densenet", 2, ADAMW),
    ("densenet with a large stem", 1, {**SGD, "clip": 1.0}),
    ("gpt", 2, {**ADAMW, "clip": 1.0}),
    ("gpt", 1, SGD),
    ("gpt with rotary positions", 1, ADAMW),
    ("gpt with rotary positions", 2, {**SGD, "weight_decay": 0.01, "clip": 1.0}),
]
STEPS = 10


def summary(name, tensor, samples):
    flat = tensor.detach().flatten()
    indices = sorted({0, len(flat) - 1, *formula_integers(name, (samples,), len(flat)).tolist()})
    return {"shape": list(tensor.shape), "sum": flat.sum().item(), "squares": flat.square().sum().item(),
            "indices": indices, "values": flat[indices].tolist()}


def golden_gradients(name):
    rows, given = TINY[name]
    request = request_of({"model": given, "dtype": "f64", "threads": 1}, {})
    options = request["model"]
    trainer = Trainer(request, formula_weights(options))
    batch = {key: value[0] for key, value in formula_batches(options, 1, rows).items()}
    trainer.zero_grad()
    loss = trainer.forward_backward(*trainer.to_device(batch))
    return {"name": name, "model": options, "rows": rows, "loss": loss.item(),
            "gradients": {key: summary(key, p.grad, 2) for key, p in trainer.model.named_parameters()}}


def golden_steps(name, micro_batches, optimizer):
    rows, given = TINY[name]
    request = request_of({"model": given, "dtype": "f64", "micro_batches": micro_batches, "optimizer": optimizer,
                          "threads": 1}, {})
    options = request["model"]
    trainer = Trainer(request, formula_weights(options))
    batches = formula_batches(options, STEPS, rows)
    losses, norms = [], []
    for step in range(STEPS):
        loss, norm = trainer.step(*trainer.to_device({key: value[step] for key, value in batches.items()}))
        losses.append(loss.item())
        norms.append(norm.item())
    state = {key: summary(key, value, 2) for key, value in trainer.state().items()}
    return {"name": f"{name}, {optimizer['kind']}", "model": options, "rows": rows, "micro_batches": micro_batches,
            "optimizer": request["optimizer"], "losses": losses, "gradient_norms": norms, "state": state}


def write_cases(path, about, cases):
    """One tensor a line, so that a change shows as one."""
    texts = []
    for case in cases:
        tensors_key = "gradients" if "gradients" in case else "state"
        head = json.dumps({key: value for key, value in case.items() if key != tensors_key})[1:-1]
        lines = ",\n".join(f'{json.dumps(name)}: {json.dumps(value)}' for name, value in case[tensors_key].items())
        texts.append("{" + head + f',\n"{tensors_key}": {{\n{lines}}}}}')
    text = '{"about": ' + json.dumps(about) + ',\n"cases": [\n' + ",\n".join(texts) + "]}\n"
    json.loads(text)
    pathlib.Path(path).write_text(text, encoding="utf-8")


def golden(folder):
    made_by = f"bench/training_peer.py golden, PyTorch {torch.__version__}, float64"
    write_cases(pathlib.Path(folder) / "double_models.json", f"Losses and gradients: {made_by}",
                [golden_gradients(name) for name in TINY])
    write_cases(pathlib.Path(folder) / "training_steps.json", f"{STEPS} steps: {made_by}",
                [golden_steps(*run) for run in RUNS])


# ----- main ---------------------------------------------------------------------------------------------------------


def about():
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "compile": hasattr(torch, "compile"),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None}


def request_file(path):
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))


def main(arguments):
    command, *rest = arguments or [""]
    if command == "about" and not rest:
        print(json.dumps(about()))
    elif command == "steps" and len(rest) == 5:
        run_steps(request_file(rest[0]), *rest[1:])
    elif command == "time" and len(rest) == 1:
        print(json.dumps(Timing(request_file(rest[0])).round()))
    elif command == "serve" and not rest:
        serve()
    elif command == "train" and 1 <= len(rest) <= 3:
        train(request_file(rest[0]), *rest[1:])
    elif command == "golden" and len(rest) == 1:
        golden(rest[0])
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
