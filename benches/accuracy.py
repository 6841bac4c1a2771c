#!/usr/bin/env python3
"""Does faster training learn as much? With dropout and bf16, both sides, on real rows.

    python3 benches/accuracy.py --data DIR                       # both tasks, three seeds, both sides
    python3 benches/accuracy.py --data DIR --tasks sst2 --sides chandler

Prints a table of accuracies, and draws chandler's loss in fp32 over that in bf16 (--plot).
"""

import argparse
import json
import statistics
from pathlib import Path

from harness import environment, plot
from harness.corpora import Corpora
from harness.environment import REPOSITORY, say
from harness.rows import MINILM
from harness.sides import Chandler, Peer

TASKS = {
    "sst2": {
        "title": "SST-2, 3 epochs, batch 32",
        "corpus": "sst2",
        "rows": (6920, 872),
        "max_seq_length": 512,
        "seeds": [1, 2, 3],
        "args": {"num_train_epochs": 3, "per_device_train_batch_size": 32},
        "peer": {"group_by_length": True},
        # How far below HF's mean ours may be.
        "tolerance": 0.005,
    },
    "imdb": {
        "title": "IMDB, 256 tokens, 2 epochs, batch 16",
        "corpus": "imdb",
        "rows": (4000, 1000),
        "max_seq_length": 256,
        "seeds": [1],
        "args": {"num_train_epochs": 2, "per_device_train_batch_size": 16},
        "peer": {"group_by_length": False},
        "tolerance": 0.01,
    },
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of real rows; README.md says which")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--sides", default="chandler,peer")
    parser.add_argument("--seeds", help="instead of the tasks' own, such as 1,2,3")
    parser.add_argument("--plot", help="draw the loss of the first task's first seed in bf16 and in fp32 into this SVG")
    parser.add_argument("--out", default=REPOSITORY / "target" / "benches", help="folder for accuracy.json")
    parser.add_argument("--cache", default="~/.cache/chandler-benches")
    parser.add_argument("--program", help="a chandler that is already built")
    parser.add_argument("--peer-python", help="a Python that already has torch, transformers, datasets and accelerate")
    return parser.parse_args()


class Accuracy:
    def __init__(self, options):
        self.options = options
        self.environment = environment.Environment(options.cache, options.peer_python)
        self.corpora = Corpora(options.data, self.environment.cache / "rows")
        self.peer = Peer(self.environment, self.environment.cache / "peer", environment.tcmalloc())
        ours = options.plot or "chandler" in options.sides
        self.program = options.program or (environment.build_chandler() if ours else None)
        self.results = {}

    def files(self, task):
        train, evaluation = task["rows"]
        return self.corpora.file(task["corpus"], "train", train), self.corpora.file(task["corpus"], "eval", evaluation)

    def args(self, task, seed):
        shared = {"learning_rate": 5e-5, "per_device_eval_batch_size": 64, "logging_steps": 10, "seed": seed}
        return {**shared, **task["args"]}

    def chandler(self, task, seed, bf16=True):
        args = {**self.args(task, seed), "bf16": bf16, "save_strategy": "no"}
        spec = {
            "model": str(self.environment.model(MINILM)),
            "task": "sequence_classification",
            "max_seq_length": task["max_seq_length"],
            "training_args": args,
        }
        with Chandler(self.program, self.environment.cache / "chandler") as server:
            result = server.run(spec, *self.files(task))
            result["losses"] = server.series(result["job"], "loss")
        return result

    def hugging_face(self, task, seed):
        train, evaluation = self.files(task)
        return self.peer.run(
            {
                "model": self.environment.model(MINILM),
                "train": train,
                "eval": evaluation,
                "bf16": True,
                "pad_to_max_length": False,
                "max_seq_length": task["max_seq_length"],
                "training_args": self.args(task, seed),
                **task["peer"],
            }
        )

    def run(self):
        sides = {"chandler": self.chandler, "peer": self.hugging_face}
        for name in self.options.tasks.split(","):
            task = TASKS[name]
            seeds = [int(s) for s in self.options.seeds.split(",")] if self.options.seeds else task["seeds"]
            for side in self.options.sides.split(","):
                for seed in seeds:
                    result = sides[side](task, seed)
                    say(f"{name}, {side}, seed {seed}: accuracy {result['eval_accuracy']:.4f}")
                    self.results.setdefault(name, {}).setdefault(side, []).append({"seed": seed, **result})
                    self.write()

    def write(self):
        out = Path(self.options.out)
        out.mkdir(parents=True, exist_ok=True)
        (out / "accuracy.json").write_text(json.dumps(self.results, indent=1))

    def draw(self):
        name = self.options.tasks.split(",")[0]
        task, seed = TASKS[name], TASKS[name]["seeds"][0]
        series = {}
        for label, bf16 in [("bf16", True), ("fp32", False)]:
            result = self.chandler(task, seed, bf16)
            series[label] = result["losses"]
            say(f"{name}, {label}: accuracy {result['eval_accuracy']:.4f}, loss {result['train_loss']:.4f}")
        Path(self.options.plot).write_text(plot.svg(f"Training loss, {task['title']}, seed {seed}", series))


def table(results):
    lines = ["| | HF | chandler | difference | allowed |\n|---|--:|--:|--:|--:|\n"]
    for name, sides in results.items():
        show = {"peer": "", "chandler": ""}
        means = {}
        for side, runs in sides.items():
            values = [run["eval_accuracy"] for run in runs]
            means[side] = statistics.mean(values)
            show[side] = f"**{means[side]:.4f}** ({', '.join(f'{v:.4f}' for v in values)})"
        apart = f"{means['chandler'] - means['peer']:+.4f}" if len(means) == 2 else ""
        task = TASKS[name]
        lines.append(f"| {task['title']} | {show['peer']} | {show['chandler']} | {apart} | −{task['tolerance']} |\n")
    return "".join(lines)


def main():
    accuracy = Accuracy(arguments())
    if accuracy.options.plot:
        accuracy.draw()
    accuracy.run()
    print(table(accuracy.results))


if __name__ == "__main__":
    main()
