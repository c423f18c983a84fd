#!/usr/bin/env python3
"""Plots a JSON file of dunnock-bench as a PNG: plot.py RESULT.json PLOT.png (needs matplotlib)."""
import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    with open(sys.argv[1], encoding="utf-8") as file:
        rows = json.load(file)["benchmarks"]
    operations = ["insert", "negative", "positive"]
    figure, axes = plt.subplots(1, len(operations), figsize=(18, 6))
    for axis, operation in zip(axes, operations):
        series = {}
        for row in rows:
            if row["op"] == operation and row["threads"] == 1 and row["load"] > 0:
                key = f'{row["structure"]}, {row["media"]}, {row["mode"]}'
                series.setdefault(key, []).append((row["load"], row["real_time"]))
        for name, points in sorted(series.items()):
            points.sort()
            axis.plot(*zip(*points), marker="o", label=name)
        axis.set(title=operation, xlabel="load, %", ylabel="ns per operation", yscale="log")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(sys.argv[2], dpi=120)
    return 0


if __name__ == "__main__":
    sys.exit(main())
