#!/usr/bin/env python3
"""How speed depends on the length of sequences, and memory on the tokens of a micro-batch.

    python3 benches/scaling.py
    python3 benches/scaling.py --shape base --steps 4

Runs the bench `train_step` once for each size, on a model of random weights, and prints two Markdown tables. Work
grows with the square of the length in attention alone, and memory with the number of tokens: both should show.
"""

import argparse
import json
import subprocess

from harness import environment
from harness.environment import say

LENGTHS = [16, 32, 64, 128, 256, 512]
TOKENS = [1024, 2048, 4096, 8192, 16384]
ATTENTION = ("attention", "attention backward")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="minilm", help="tiny, minilm, base or large")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a micro-batch in the first table")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence in the second table")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--f32", action="store_true")
    parser.add_argument("--program", help="a build of the bench `train_step`")
    return parser.parse_args()


class Runs:
    def __init__(self, options):
        self.options = options
        self.program = options.program or environment.build_bench("train_step")

    def run(self, sequences, length):
        """All sequences are of one length."""
        options = self.options
        say(f"{sequences} sequences of {length} tokens")
        command = [self.program, "--json", "--shape", options.shape, "--batch", sequences, "--tokens", length]
        command += ["--spread", 0, "--steps", options.steps, *(["--f32"] if options.f32 else [])]
        return json.loads(environment.run(command, stdout=subprocess.PIPE).stdout)

    def lengths(self):
        head = "| tokens a sequence | sequences | tokens/s | attention, ms | of the step | rest, ms | tokens/s without attention |"
        lines = [head, "|--:|--:|--:|--:|--:|--:|--:|"]
        for length in LENGTHS:
            sequences = max(self.options.tokens // length, 1)
            result = self.run(sequences, length)
            step = result["mean_step_ms"]
            attention = sum(result["ops"][op]["ms"] for op in ATTENTION)
            rest = step - attention
            alone = 1e3 * result["tokens_per_step"] / rest
            lines.append(
                f"| {length} | {sequences} | {result['tokens_per_second']:.0f} | {attention:.1f} "
                f"| {attention / step:.0%} | {rest:.1f} | {alone:.0f} |"
            )
        return "\n".join(lines)

    def memory(self):
        points = []
        for tokens in TOKENS:
            result = self.run(max(tokens // self.options.length, 1), self.options.length)
            points.append((result["tokens_per_step"], result["peak_resident_mb"], result["tokens_per_second"]))
        start, slope = line([(tokens, peak) for tokens, peak, _ in points])
        lines = ["| tokens a micro-batch | tokens/s | peak, MB | on the line | apart |", "|--:|--:|--:|--:|--:|"]
        for tokens, peak, speed in points:
            fitted = start + slope * tokens
            lines.append(f"| {tokens:.0f} | {speed:.0f} | {peak} | {fitted:.0f} | {peak / fitted - 1:+.1%} |")
        lines.append(f"\n{start:.0f} MB, and {slope * 1e3:.1f} KB for each token.")
        return "\n".join(lines)


def line(points):
    """The start and slope of the straight line with the least squares."""
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return mean_y - slope * mean_x, slope


def main():
    runs = Runs(arguments())
    print(runs.lengths(), end="\n\n")
    print(runs.memory())


if __name__ == "__main__":
    main()
