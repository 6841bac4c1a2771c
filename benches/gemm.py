#!/usr/bin/env python3
"""Our matrix products beside those of others: torch's (oneDNN) in bf16, the crate gemm's in f32.

    python3 benches/gemm.py                                  # all sizes, three rounds
    python3 benches/gemm.py --sizes 128 --rounds 1 --seconds 0.2

The libraries take turns within one command, half a second each; a round goes through all of them, and ratios are
taken within a round. Prints GFLOP/s, medians of the rounds, as Markdown.
"""

import argparse
import os
import statistics
import subprocess

from harness import environment
from harness.environment import PEER, say

# Rows, inputs and outputs of a linear layer: BERT-base on 4096 tokens, MiniLM on 2048, a tiny model, BERT-large.
SIZES = [
    (4096, 768, 3072),
    (4096, 3072, 768),
    (4096, 768, 768),
    (2048, 384, 1536),
    (2048, 1536, 384),
    (2048, 384, 384),
    (2048, 128, 512),
    (2048, 512, 128),
    (2048, 1024, 4096),
    (2048, 4096, 1024),
]
PASSES = ["forward", "dX", "dW"]
PEERS = {"bf16": "torch", "f32": "gemm"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one library's turn")
    parser.add_argument("--precisions", default="bf16,f32")
    parser.add_argument("--sizes", default="", help="only sizes with one of these numbers, such as 128,4096")
    parser.add_argument("--cache", default="~/.cache/chandler-benches", help="folder for the peer")
    parser.add_argument("--program", help="a build of the bench `ops`")
    parser.add_argument("--peer-python", help="a Python that already has torch")
    return parser.parse_args()


class Library:
    """A process that answers requests."""

    def __init__(self, command, **options):
        command = [str(part) for part in command]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, **options)

    def seconds(self, *request):
        print(*request, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"no answer to {request}")
        return float(answer)


class Comparison:
    def __init__(self, options):
        self.options = options
        chandler = Library([options.program or environment.build_bench("ops"), "--requests"])
        self.libraries = {"chandler": chandler, "gemm": chandler}
        if "bf16" in options.precisions:
            python = environment.Environment(options.cache, options.peer_python).python
            preload = environment.tcmalloc()
            env = {**os.environ, **({"LD_PRELOAD": preload} if preload else {})}
            self.libraries["torch"] = Library([python, PEER / "gemm.py"], env=env)

    def turn(self, library, *request):
        return self.libraries[library].seconds(library, *request, self.options.seconds)

    def row(self, precision, size):
        """GFLOP/s of both, pass by pass: [(ours, theirs), …] of the rounds."""
        flop = 2 * size[0] * size[1] * size[2]
        rows = {}
        for number in range(self.options.rounds):
            for name in PASSES:
                order = ["chandler", PEERS[precision]]
                turns = order if number % 2 else order[::-1]
                rates = {library: flop / 1e9 / self.turn(library, precision, name, *size) for library in turns}
                rows.setdefault(name, []).append([rates[library] for library in order])
        return rows

    def table(self, precision):
        peer = PEERS[precision]
        lines = [f"| {precision}: rows × inputs → outputs "]
        lines += [f"| {name}: chandler | {peer} | ratio " for name in PASSES]
        lines += ["|\n|---", *["|--:|--:|--:"] * len(PASSES), "|\n"]
        wanted = [int(number) for number in self.options.sizes.split(",") if number]
        for size in SIZES:
            if wanted and not set(wanted) & set(size):
                continue
            say(f"{precision}, {size}")
            lines.append("| {} × {} → {} ".format(*size))
            for rounds in self.row(precision, size).values():
                ours, theirs = (statistics.median(column) for column in zip(*rounds))
                ratio = statistics.median(a / b for a, b in rounds)
                lines.append(f"| {ours:.0f} | {theirs:.0f} | **{ratio:.2f}** ")
            lines.append("|\n")
        return "".join(lines)


def main():
    comparison = Comparison(arguments())
    for precision in comparison.options.precisions.split(","):
        print(comparison.table(precision))


if __name__ == "__main__":
    main()
