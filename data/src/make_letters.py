#!/usr/bin/env python3
"""Writes letters.inc: which characters \\p{L} and \\p{N} are, for the pieces of GPT-2 (pieces.cpp).

Needs the module `regex`, whose Unicode version is the newest at hand; Python's own is older.
Run: make_letters.py > letters.inc
"""
import regex


def ranges(pattern):
    matches = regex.compile(pattern).match
    found, begin = [], None
    for character in range(0x110001):
        inside = character < 0x110000 and matches(chr(character)) is not None
        if inside and begin is None:
            begin = character
        if not inside and begin is not None:
            found.append((begin, character - 1))
            begin = None
    return found


print(f"// Made by make_letters.py with regex {regex.__version__}. The first and the last of each run of characters.")
for name, pattern in (("kLetters", r"\p{L}"), ("kNumbers", r"\p{N}")):
    found = ranges(pattern)
    print(f"constexpr std::array<Run, {len(found)}> {name} = {{{{")
    line = "   "
    for first, last in found:
        item = f" {{0x{first:X}, 0x{last:X}}},"
        if len(line) + len(item) > 120:
            print(line)
            line = "   "
        line += item
    print(line)
    print("}};")
