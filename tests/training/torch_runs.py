#!/usr/bin/env python3
"""PyTorch's side of torch_test.cpp. Usage: torch_runs.py FOLDER

FOLDER/jobs.json is a list of {"name", "request", "logits_of"}; NAME.weights, NAME.batches and NAME.ours are there, and
all of it is done in one process, for PyTorch takes seconds to load. For each job:
  NAME.result, NAME.final   what `training_peer.py steps` gives
  NAME.logits               of the first batch, in evaluation, with the weights of NAME.ours
  NAME.hf.DTYPE             of a GPT: NAME.ours as a Hugging Face checkpoint of GPT-2, in F32, F16 and BF16
  NAME.hf.DTYPE.logits      and its logits in f32
"""
import json
import pathlib
import sys

import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.dont_write_bytecode = True  # The tree stays as it is.
sys.path.insert(0, str(HERE.parent.parent / "bench"))
import training_peer as peer  # noqa: E402


@torch.no_grad()
def write_logits(path, options, weights, inputs):
    model = peer.make_model(options)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"weights lack {missing} and have {unexpected} besides")
    model.eval()
    peer.write_safetensors(path, {"logits": model(inputs)})


def hugging_face(options, weights, dtype):
    named = {"transformer." + name: value.to(dtype) for name, value in weights.items()}
    context = options["context"]
    for layer in range(options["layers"]):
        attention = f"transformer.h.{layer}.attn."
        named[attention + "bias"] = torch.ones(context, context, dtype=torch.uint8).tril().view(1, 1, context, context)
        named[attention + "masked_bias"] = torch.tensor(-1e4)
    named["lm_head.weight"] = named["transformer.wte.weight"].clone()
    return named


def main(folder):
    folder = pathlib.Path(folder)
    for job in json.loads((folder / "jobs.json").read_text(encoding="utf-8")):
        name, request = job["name"], job["request"]
        paths = [folder / f"{name}.{part}" for part in ("weights", "batches", "result", "final", "ours", "logits")]
        peer.run_steps(request, *paths[:4])
        options = peer.model_options(request["model"])
        batches = peer.read_safetensors(paths[1])
        first = {key: value[0] for key, value in batches.items()}
        inputs, _ = peer.inputs_of(options, first, torch.float32)
        ours = peer.read_safetensors(paths[4])
        write_logits(paths[5], options, ours, inputs)
        if options["kind"] != "gpt":
            continue
        for dtype in ("F32", "F16", "BF16"):
            kind = peer.SAFETENSORS_TYPES[dtype]
            peer.write_safetensors(folder / f"{name}.hf.{dtype}", hugging_face(options, ours, kind))
            rounded = {key: value.to(kind).float() for key, value in ours.items()}
            write_logits(folder / f"{name}.hf.{dtype}.logits", options, rounded, inputs)


if __name__ == "__main__":
    main(sys.argv[1])
