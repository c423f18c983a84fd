#!/usr/bin/env python3
"""Makes tokenizers.json: small tokenizers of many kinds, and what Hugging Face's tokenizers (pip: tokenizers) makes of
texts with them. Usage: make_tokenizers.py SHAKESPEARE.TXT
"""
import json
import pathlib
import random
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

draw = random.Random(15)
prose = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")[:60000]
lines = prose.split("\n\n")
RANGES = [(0x20, 0x7F), (0x61, 0x7B), (9, 14), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x600), (0x2000, 0x2070),
          (0x3000, 0x3100), (0x4E00, 0x4F00), (0xAC00, 0xAC80), (0x1F300, 0x1F700), (0x1D400, 0x1D800), (0, 0x20)]


def text(added):
    parts = []
    for _ in range(draw.randrange(0, 9)):
        kind = draw.random()
        if kind < 0.25 and added:
            parts.append(draw.choice(added))
        elif kind < 0.45:
            at = draw.randrange(len(prose) - 60)
            parts.append(prose[at:at + draw.randrange(1, 40)])
        elif kind < 0.65:
            parts.append(draw.choice([" ", "  ", "\n", "\t", " \n ", "\u00a0", "\u3000", "'s", "'ll", " 12", "\r\n"]))
        else:
            first, last = draw.choice(RANGES)
            parts.append("".join(chr(draw.randrange(first, last)) for _ in range(draw.randrange(1, 5))))
    return "".join(parts)


made = []
for number in range(16):
    spaces, regex, ignores = number % 4 == 1, number % 5 != 2, number % 3 == 1
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignores))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaces, use_regex=regex)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>"] if number % 2 == 0 else []
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=266 + number * 2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=special,
        show_progress=False))
    file = json.loads(tokenizer.to_str())
    if number % 2 == 1:
        file["model"]["merges"] = [" ".join(pair) for pair in file["model"]["merges"]]
    if number in (3, 6):
        draw.shuffle(file["model"]["merges"])
    if number == 9:
        file["model"]["vocab"] = {name: 3 * place for name, place in file["model"]["vocab"].items()}
    added = list(special)
    size = len(file["model"]["vocab"])
    strips = number in (4, 8, 12)
    if number != 9:
        for content in draw.sample(["<e>", "<e><f>", "the", "\u00e9\u4e2d", "<mask>", "e", "'s"] +
                                   ([] if strips else ["  ", " x", "\n\n"]), number % 5):
            if content in file["model"]["vocab"]:
                continue
            added.append(content)
            file["added_tokens"].append({
                "id": size, "content": content, "single_word": False, "lstrip": strips and draw.random() < 0.5,
                "rstrip": strips and draw.random() < 0.5, "normalized": draw.random() < 0.5,
                "special": draw.random() < 0.5})
            size += 1
    peer = Tokenizer.from_str(json.dumps(file))
    texts = sorted({text(added) for _ in range(25)})
    made.append({"what": f"add_prefix_space {spaces}, use_regex {regex}, ignore_merges {ignores}, added {added}",
                 "tokenizer": file, "cases": {one: peer.encode(one, add_special_tokens=False).ids for one in texts}})
path = pathlib.Path(__file__).parent / "tokenizers.json"
path.write_text("[" + ",\n".join(json.dumps(one, separators=(",", ":")) for one in made) + "]\n", encoding="utf-8")
