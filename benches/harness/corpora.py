"""Rows to train on, as CSV files with the columns `text,label` that both sides read.

Either a folder holds real ones (README.md says which), or they are made up: speed depends on lengths, not on
meaning, so made-up texts have the length distribution of the real ones.
"""

import csv
import random
from pathlib import Path

csv.field_size_limit(1 << 30)

# Where the rows of a corpus are in the folder given with --data.
FILES = {
    "sst2": {"train": "sst2-train.tsv", "eval": "sst2-dev.tsv"},
    "imdb": {"train": "imdb-train-4000.csv", "eval": "imdb-test-1000.csv"},
}

# Words per text: the logarithm's mean and deviation, and the bounds. Fitted to the real rows.
WORDS = {"sst2": (2.757, 0.626, 1, 51), "imdb": (5.256, 0.637, 12, 2470)}
LONGEST_MADE = {"sst2": 6920, "imdb": 4000}


def read(path):
    """(text, label) of a CSV file with a header line, or of a TSV file without one."""
    with open(path, newline="", encoding="utf-8") as file:
        if path.suffix == ".tsv":
            lines = (line.rstrip("\n").rsplit("\t", 1) for line in file)
            return [(text, label) for text, label in lines]
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


def make_up(corpus, split):
    """Rows of random words, the same ones every time."""
    mean, deviation, shortest, longest = WORDS[corpus]
    rng = random.Random(f"{corpus} {split}")
    vocabulary = VOCABULARY.split()
    rows = []
    for _ in range(LONGEST_MADE[corpus]):
        count = int(min(max(rng.lognormvariate(mean, deviation), shortest), longest))
        words = [rng.choice(vocabulary) for _ in range(count)]
        rows.append((" ".join(words), str(rng.randrange(2))))
    return rows


# Ordinary words that a BERT vocabulary has whole; a few rarer ones that it splits, as real texts have.
VOCABULARY = """
the a an of and to in is it that this with for but as on by his her film movie story one all about not be are
was at who has from an or they have you like so out more than its what there can up good just some if time when
which even does no into only most get will make too other how much funny way would never characters their love
little life first best work any plot comedy watch bad see over drama new made also many scene after made every
could people director because through well great really still real seems own down world made enough off both
something performance act two long these feel without audience show made heart before kind better us cast minutes
actors lines being where those look humor then man while moments young dull charming tedious cliches unfunny
overwrought lyrical bittersweet storytelling filmmaker screenplay melodrama romanticized heartfelt implausible
"""


class Corpora:
    """Writes what a row needs below `folder`, once."""

    def __init__(self, data, folder):
        self.data, self.folder = data, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.cache = {}

    def file(self, corpus, split, count):
        """A CSV file with the first `count` rows."""
        rows = self.rows(corpus, split)
        if len(rows) < count:
            raise SystemExit(f"{corpus} {split} has {len(rows)} rows, {count} are needed")
        path = self.folder / f"{corpus}-{split}-{count}.csv"
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(rows[:count])
        return path

    def rows(self, corpus, split):
        key = (corpus, split)
        if key not in self.cache:
            real = self.data and Path(self.data) / FILES[corpus][split]
            self.cache[key] = read(real) if real else make_up(corpus, split)
        return self.cache[key]
