#!/usr/bin/env python3
"""chandler beside the Hugging Face Trainer on this machine's CPU: one command, one table.

    python3 benches/compare.py --data DIR        # real rows; README.md says which files
    python3 benches/compare.py                   # made-up rows of the same lengths
    python3 benches/compare.py --rows sst2,imdb512 --rounds 5

Installs the peer into a virtual environment of its own, builds chandler, runs both sides alternately on the same rows, prints a
Markdown table of medians (lowest–highest) and writes it, with all raw figures as JSON, to --out.
"""

import argparse
import json
import subprocess
import time
from pathlib import Path

from harness import environment, machine, report, rows
from harness.corpora import Corpora
from harness.environment import REPOSITORY, say
from harness.sides import Chandler, Peer


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ",".join(row.name for row in rows.ROWS)
    parser.add_argument("--data", help="folder of real rows; made-up ones without it")
    parser.add_argument("--rows", default="", help=f"of {names}; all by default")
    parser.add_argument("--rounds", type=int, default=3, help="times that both sides run each row")
    parser.add_argument("--scale", type=float, default=1.0, help="share of each row's work to do")
    parser.add_argument("--out", default=REPOSITORY / "target" / "benches", help="folder for compare.md and compare.json")
    parser.add_argument("--cache", default="~/.cache/chandler-benches", help="folder for the peer and for models")
    parser.add_argument("--program", help="a chandler that is already built")
    parser.add_argument("--peer-python", help="a Python that already has torch, transformers, datasets and accelerate")
    parser.add_argument("--peer-results", help="compare.json of an earlier run on this machine: its HF figures, not new ones")
    parser.add_argument("--no-tcmalloc", action="store_true", help="measure the peer with the system's allocator")
    return parser.parse_args()


class Comparison:
    def __init__(self, options):
        self.options = options
        self.environment = environment.Environment(options.cache, options.peer_python)
        self.corpora = Corpora(options.data, self.environment.cache / "rows")
        preload = None if options.no_tcmalloc else environment.tcmalloc()
        if not (preload or options.no_tcmalloc):
            raise SystemExit("the peer is faster with tcmalloc: install it (Debian: google-perftools), or say --no-tcmalloc")
        self.preload = preload
        self.peer = Peer(self.environment, self.environment.cache / "peer", preload)
        self.program = options.program or environment.build_chandler()

    def run(self):
        chosen = rows.chosen([name for name in self.options.rows.split(",") if name])
        measured = [(row.scaled(self.options.scale), []) for row in chosen]
        earlier = self.earlier()
        for number in range(1, self.options.rounds + 1):
            for row, rounds in measured:
                say(f"round {number}: {row.name}")
                rounds.append(self.round(row, number, earlier))
                self.write(measured)
        return measured

    def earlier(self):
        path = self.options.peer_results
        if not path:
            return {}
        saved = json.loads(Path(path).read_text())
        return {row["name"]: [r["peer"] for r in row["rounds"]] for row in saved["rows"]}

    def round(self, row, number, earlier):
        """Both sides once; the one that begins changes from round to round."""
        train = self.corpora.file(row.corpus, "train", row.train_rows)
        eval_ = self.corpora.file(row.corpus, "eval", row.eval_rows) if row.eval_rows else None
        model = self.environment.model(row.model)

        def ours():
            with Chandler(self.program, self.environment.cache / "chandler") as chandler:
                return chandler.run({**row.job_spec(), "model": str(model)}, train, eval_)

        def peer():
            if row.name in earlier:
                return earlier[row.name][(number - 1) % len(earlier[row.name])]
            return self.peer.run({**row.peer_work(), "model": model, "train": train, "eval": eval_})

        sides = [("peer", peer), ("chandler", ours)]
        results = {name: side() for name, side in (sides if number % 2 else reversed(sides))}
        for name in ("peer", "chandler"):
            f = report.figures(row, results[name])
            say(f"  {name:8} {f['samples_per_second']:8.2f} samples/s  {f['peak_resident_bytes'] / 2**20:6.0f} MiB")
        return results

    def write(self, measured):
        out = Path(self.options.out)
        out.mkdir(parents=True, exist_ok=True)
        (out / "compare.md").write_text(report.table(measured))
        raw = {"about": self.about(), "rows": [{"name": row.name, "title": row.title, "rounds": r} for row, r in measured]}
        (out / "compare.json").write_text(json.dumps(raw, indent=1))

    def about(self):
        revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
        return {
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine.description(),
            "revision": revision.stdout.strip(),
            "data": "real" if self.options.data else "made up",
            "tcmalloc": bool(self.preload),
            "scale": self.options.scale,
        }


def main():
    comparison = Comparison(arguments())
    measured = comparison.run()
    print(report.table(measured))
    for text in report.disturbances(measured):
        print(f"disturbed: {text}")


if __name__ == "__main__":
    main()
