#!/usr/bin/env python3
"""Tests of bench/training_peer.py, which needs PyTorch: training_peer_test.sh runs them where there is one."""
import contextlib
import io
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import unittest

import torch

HERE = pathlib.Path(__file__).resolve().parent
PEER = HERE.parent.parent / "bench" / "training_peer.py"
sys.dont_write_bytecode = True  # The tree stays as it is.
sys.path.insert(0, str(PEER.parent))
import training_peer as peer  # noqa: E402

TINY_GPT = {"kind": "gpt", "vocabulary": 256, "context": 8, "layers": 1, "heads": 2, "width": 16}


def call(*arguments, text=None):
    """The program, in this process (PyTorch takes seconds to load): (status, standard output, standard error)."""
    out, errors, before = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.StringIO(text)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            status = peer.main(list(map(str, arguments)))
    finally:
        sys.stdin = before
    return status, out.getvalue(), errors.getvalue()


def numbers(value):
    """All numbers in it, in order."""
    if isinstance(value, dict):
        return [number for key in value for number in numbers(value[key])]
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [] if isinstance(value, str) else [float(value)]


class Peer(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def write(self, name, request):
        path = self.folder / name
        path.write_text(json.dumps(request), encoding="utf-8")
        return path

    def test_golden_files_are_what_this_pytorch_gives(self):
        self.assertEqual(call("golden", self.folder)[0], 0)
        for name in ("double_models.json", "training_steps.json"):
            shipped, made = (json.loads((folder / name).read_text(encoding="utf-8"))["cases"]
                             for folder in (HERE / "data", self.folder))
            self.assertEqual([case["name"] for case in shipped], [case["name"] for case in made])
            shipped, made = numbers(shipped), numbers(made)
            self.assertEqual(len(shipped), len(made))
            self.assertGreater(len(shipped), 1000)
            self.assertLess(max(abs(a - b) / (1 + abs(a)) for a, b in zip(shipped, made)), 1e-10)

    def steps(self, name, dtype, **more):
        """Runs the command on the golden case `name`: (case, result, final state)."""
        cases = json.loads((HERE / "data" / "training_steps.json").read_text(encoding="utf-8"))["cases"]
        case = next(case for case in cases if case["name"] == name)
        options = peer.model_options(case["model"])
        request = self.write("request.json", {"model": options, "dtype": dtype, "optimizer": case["optimizer"],
                                              "micro_batches": case["micro_batches"], "threads": 1, **more})
        weights = {key: value.float() for key, value in peer.formula_weights(options).items()}
        batches = {key: value.int() if key != "images" else value.float()
                   for key, value in peer.formula_batches(options, 10, case["rows"]).items()}
        paths = [self.folder / part for part in ("weights", "batches", "result", "final")]
        peer.write_safetensors(paths[0], weights)
        peer.write_safetensors(paths[1], batches)
        self.assertEqual(call("steps", request, *paths)[0], 0)
        return case, json.loads(paths[2].read_text(encoding="utf-8")), peer.read_safetensors(paths[3])

    def check_steps(self, name, dtype, tolerance):
        case, result, final = self.steps(name, dtype)
        for key in ("losses", "gradient_norms"):
            for a, b in zip(result[key], case[key]):
                self.assertLess(abs(a - b), tolerance * (1 + b))
        self.assertEqual(set(final), set(case["state"]))
        for key, golden in case["state"].items():
            self.assertEqual(list(final[key].shape), golden["shape"])
            values = final[key].double().flatten()[golden["indices"]].tolist()
            for a, b in zip(values, golden["values"]):
                self.assertLess(abs(a - b), tolerance, key)

    def test_steps_from_files_are_the_golden_ones(self):
        self.check_steps("cnn with batch norm, sgd", "f64", 1e-12)
        self.check_steps("gpt, adamw", "f64", 1e-12)
        self.check_steps("gpt with rotary positions, sgd", "f32", 1e-5)
        self.check_steps("resnet of bottlenecks, sgd", "f32", 1e-4)
        self.check_steps("gpt, sgd", "bf16", 0.1)
        self.check_steps("gpt, sgd", "autocast", 0.1)

    def test_a_schedule_sets_the_learning_rate_of_each_step(self):
        schedule = {"steps": 10, "warmup": 4, "final_share": 0.1}
        rates = [peer.learning_rate_at(step, 2.0, schedule) for step in (0, 3, 4, 7, 10, 12)]
        for found, expected in zip(rates, (0.5, 2, 2, 1.1, 0.2, 0.2)):
            self.assertAlmostEqual(found, expected)
        self.assertEqual(peer.learning_rate_at(5, 2.0, None), 2.0)
        _, constant, _ = self.steps("gpt, sgd", "f64")
        _, scheduled, _ = self.steps("gpt, sgd", "f64", schedule={"steps": 10, "warmup": 2, "final_share": 0.5})
        self.assertEqual(constant["losses"][0], scheduled["losses"][0])
        self.assertNotEqual(constant["losses"][1], scheduled["losses"][1])

    def test_safetensors_come_back_as_they_were(self):
        tensors = {"a": torch.randn(3, 5), "b": torch.arange(7, dtype=torch.int32), "c": torch.randn(2, 1).bfloat16(),
                   "d": torch.tensor(2.5, dtype=torch.float64)}
        peer.write_safetensors(self.folder / "file", tensors)
        found = peer.read_safetensors(self.folder / "file")
        self.assertEqual(list(found), list(tensors))
        for name, tensor in tensors.items():
            self.assertEqual(found[name].dtype, tensor.dtype)
            self.assertTrue(torch.equal(found[name], tensor))

    def test_serve_times_rounds_and_outlives_bad_lines(self):
        request = {"model": TINY_GPT, "rows": 2, "threads": 1, "repeats": 3, "warmup": 1}
        lines = ["round", json.dumps(request), "round", "round", "nonsense", json.dumps({**request, "row": 1}),
                 json.dumps({**request, "model": {"kind": "cnn", "stages": [[2]], "hidden": []}, "dtype": "bf16"}),
                 "round"]
        status, out, _ = call("serve", text="\n".join(lines) + "\n")
        self.assertEqual(status, 0)
        early, ready, first, second, nonsense, unknown, ready_cnn, cnn = map(json.loads, out.splitlines())
        self.assertIn("before any request", early["error"])
        self.assertTrue(ready["ready"])
        for answer in (first, second):
            self.assertEqual(len(answer["milliseconds"]["all"]), 3)
            self.assertGreater(answer["milliseconds"]["min"], 0)
            self.assertEqual(set(answer["parts"]), {"zero_grad", "forward", "backward", "optimizer"})
            self.assertAlmostEqual(answer["rate"], 2 * 8e3 / answer["milliseconds"]["median"])
            self.assertEqual(answer["unit"], "tokens/s")
        self.assertIn("error", nonsense)
        self.assertIn("row", unknown["error"])
        self.assertEqual(len(ready_cnn["ways"]), 4)
        self.assertEqual(cnn["unit"], "images/s")
        self.assertIn(cnn["way"], cnn["ways"])

    def train(self, request):
        status, out, _ = call("train", self.write("request.json", request))
        self.assertEqual(status, 0)
        return [json.loads(line) for line in out.splitlines()]

    def test_train_learns_a_text_the_same_each_time(self):
        text = self.folder / "text"
        text.write_bytes(b"abcdefgh ijkl " * 200)
        request = {"model": TINY_GPT, "text": str(text), "rows": 8, "steps": 60, "evaluate_every": 25, "seed": 3,
                   "threads": 1, "optimizer": {"learning_rate": 0.02, "clip": 1.0},
                   "schedule": {"steps": 60, "warmup": 5, "final_share": 0.1}}
        lines = self.train(request)
        self.assertEqual([line["step"] for line in lines], [25, 50, 60])
        self.assertLess(lines[-1]["validation_loss"], 1.0)
        self.assertLess(lines[-1]["training_loss"], lines[0]["training_loss"])
        again = self.train(request)
        self.assertEqual([line["validation_loss"] for line in lines], [line["validation_loss"] for line in again])
        other = self.train({**request, "seed": 4})
        self.assertNotEqual(lines[-1]["validation_loss"], other[-1]["validation_loss"])

    def test_train_learns_images(self):
        generator = torch.Generator().manual_seed(1)
        paths = {}
        for part, count in (("train", 200), ("test", 100)):
            labels = torch.randint(2, (count,), generator=generator)
            images = torch.randint(100, (count, 4, 4), generator=generator) + 100 * labels.view(-1, 1, 1)
            for what, values in (("images", images), ("labels", labels)):
                sides = b"".join(side.to_bytes(4, "big") for side in values.shape)
                path = self.folder / f"{part}_{what}"
                path.write_bytes(bytes([0, 0, 8, values.dim()]) + sides + values.byte().numpy().tobytes())
                paths[path.name] = str(path)
        lines = self.train({"model": {"kind": "mlp", "inputs": 16, "hidden": [8], "classes": 2}, "mnist": paths,
                            "rows": 32, "steps": 40, "evaluate_every": 40, "optimizer": {"learning_rate": 0.05}})
        self.assertGreater(lines[-1]["accuracy"], 0.95)
        self.assertTrue(math.isfinite(lines[-1]["validation_loss"]))

    def test_requests_are_refused_with_the_reason(self):
        for request, reason in [
                ({}, "model.kind is None"),
                ({"model": {"kind": "gpt", "depth": 3}}, "model gpt has no depth"),
                ({"model": TINY_GPT, "speed": 1}, "the request has no speed"),
                ({"model": TINY_GPT, "dtype": "f16"}, "dtype is 'f16'"),
                ({"model": TINY_GPT, "optimizer": {"kind": "adam"}}, "optimizer.kind is 'adam'"),
                ({"model": TINY_GPT, "schedule": {"decay": 1}}, "schedule has no decay")]:
            with self.assertRaisesRegex(ValueError, reason):
                peer.request_of(request, {})
        with self.assertRaisesRegex(ValueError, "positions is 'sine'"):
            peer.make_model(peer.model_options({**TINY_GPT, "positions": "sine"}))
        trainer = peer.Trainer(peer.request_of({"model": TINY_GPT, "micro_batches": 2}, {}))
        with self.assertRaisesRegex(ValueError, "3 rows in 2 micro-batches"):
            trainer.step(torch.zeros(3, 8, dtype=torch.int64), torch.zeros(3, 8, dtype=torch.int64))
        with self.assertRaisesRegex(ValueError, "weights lack"):
            trainer.load({})
        with self.assertRaisesRegex(ValueError, "either text or mnist"):
            peer.train({"model": TINY_GPT})
        with self.assertRaisesRegex(ValueError, "a text needs a GPT"):
            peer.train({"model": {"kind": "mlp"}, "text": str(PEER)})
        status, out, errors = call("steps")
        self.assertEqual((status, out), (2, ""))
        self.assertIn("training_peer.py about", errors)

    def test_about_names_this_pytorch(self):
        done = subprocess.run([sys.executable, str(PEER), "about"], capture_output=True, text=True, check=True)
        self.assertEqual(json.loads(done.stdout)["torch"], torch.__version__)


if __name__ == "__main__":
    unittest.main()
