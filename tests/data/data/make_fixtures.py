#!/usr/bin/env python3
"""Makes the files that the tests of texts are compared with, from other people's code: the modules regex and tiktoken.

Usage: make_fixtures.py VOCAB.JSON MERGES.TXT SHAKESPEARE.TXT, the first two of a small Bpe that was trained on the third.
Writes pieces.txt (a text in hexadecimal, and the bytes of its pieces, a line) and bpe.json here.
"""
import json
import pathlib
import random
import sys

import regex
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
vocabulary, merges, shakespeare = (pathlib.Path(name) for name in sys.argv[1:4])
here = pathlib.Path(__file__).parent
prose = shakespeare.read_text(encoding="utf-8")
draw = random.Random(20)


def characters(first, last, most):
    return "".join(chr(draw.randrange(first, last)) for _ in range(draw.randrange(1, most)))


def some_of(choices, most):
    return "".join(draw.choice(choices) for _ in range(draw.randrange(1, most)))


def excerpt():
    at = draw.randrange(len(prose) - 50)
    return prose[at:at + draw.randrange(1, 50)]


PARTS = [
    excerpt,
    lambda: some_of(" \n\t\r\u00a0\u2003\u3000\x1c\x85", 6),
    lambda: draw.choice(["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "''s", "'", "'r", "'lll"]),
    lambda: characters(0x20, 0x7F, 8),
    lambda: characters(0xA0, 0x250, 8),
    lambda: characters(0x250, 0x3100, 5),
    lambda: characters(0x3100, 0xD800, 4),
    lambda: chr(draw.choice([0x1F600, 0x10000, 0x10FFFF, 0x1D7CE, 0x20000, draw.randrange(0xE000, 0x20000)])),
    lambda: str(draw.randrange(10 ** draw.randrange(1, 9))),
    lambda: draw.choice("abAB.\u00e9 ") * draw.randrange(1, 80),
    lambda: " ",
    lambda: some_of("!?.,;'\"-()<|>_", 6),
]


def text():
    return "".join(draw.choice(PARTS)() for _ in range(draw.randrange(1, 10)))


def damaged(data):
    data = bytearray(data)
    for _ in range(draw.randrange(4)):
        data.insert(draw.randrange(len(data) + 1), draw.randrange(256))
    if data and draw.random() < 0.3:
        del data[draw.randrange(len(data))]
    return bytes(data)


with open(here / "pieces.txt", "w", encoding="ascii") as out:
    for i in range(300):
        data = damaged(text().encode()) if i % 2 else text().encode()
        pieces = regex.findall(PATTERN, data.decode(errors="surrogateescape"))
        lengths = [len(piece.encode(errors="surrogateescape")) for piece in pieces]
        assert sum(lengths) == len(data)
        print(data.hex(), *lengths, file=out)

encoding = tiktoken.Encoding("test", pat_str=PATTERN, special_tokens={},
                             mergeable_ranks=data_gym_to_mergeable_bpe_ranks(str(merges), str(vocabulary)))
cases = [{"text": t, "tokens": encoding.encode_ordinary(t)} for t in (text() for _ in range(100))]
with open(here / "bpe.json", "w", encoding="ascii") as out:
    json.dump({"vocabulary": vocabulary.read_text(encoding="utf-8"), "merges": merges.read_text(encoding="utf-8"),
               "cases": cases}, out, separators=(",", ":"))
    out.write("\n")
