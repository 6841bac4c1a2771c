"""The rows of the table: what both sides do, each with its own best or usual settings."""

from dataclasses import dataclass, field, replace

MINILM = "minilm"

# Random weights in the shapes that most models have; see models.py.
BERT_BASE = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
BERT_LARGE = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
SHAPES = {"bert-base-shaped": BERT_BASE, "bert-large-shaped": BERT_LARGE}


@dataclass(frozen=True)
class Row:
    """One comparison. `train_rows` are trained on once: one epoch, whatever each side's order."""

    name: str
    title: str
    corpus: str
    train_rows: int
    batch: int
    max_seq_length: int
    # The ratio of speeds that chandler promises.
    goal: float | None = None
    eval_rows: int = 0
    model: str = MINILM
    bf16: bool = True
    # What HF is told beyond that, and what chandler is; by default `bf16` decides for both.
    peer: dict = field(default_factory=dict)
    ours: dict = field(default_factory=dict)

    @property
    def measures_evaluation(self):
        return self.eval_rows > 0

    def scaled(self, share):
        """The same with a share of the work, in whole batches."""
        batches = max(round(self.train_rows * share / self.batch), 1)
        rows = self.train_rows if share == 1 else min(batches * self.batch, self.train_rows)
        return replace(self, train_rows=rows, eval_rows=int(self.eval_rows * share))

    def training_args(self):
        """What both sides are given, in the words of HF's TrainingArguments."""
        return {
            "num_train_epochs": 1,
            "per_device_train_batch_size": self.batch,
            "per_device_eval_batch_size": 64,
            "learning_rate": 5e-5,
            "logging_steps": 10,
            "seed": 1,
        }

    def peer_work(self):
        return {
            "bf16": self.bf16,
            "group_by_length": False,
            "pad_to_max_length": False,
            "max_seq_length": self.max_seq_length,
            "training_args": self.training_args(),
            **self.peer,
        }

    def job_spec(self):
        args = {**self.training_args(), "bf16": "auto" if self.bf16 else False, "save_strategy": "no"}
        return {
            "task": "sequence_classification",
            "max_seq_length": self.max_seq_length,
            "training_args": {**args, **self.ours},
        }


GROUPED = {"group_by_length": True}

ROWS = [
    Row("sst2", "SST-2, batch 32, bf16, HF groups by length", "sst2", 6920, 32, 512, 2.7, peer=GROUPED),
    Row("imdb512", "IMDB, up to 512 tokens, batch 16, bf16", "imdb", 320, 16, 512, 13.0),
    Row(
        "tutorial",
        "IMDB as tutorials do it: HF pads to 512, fp32, batch 8; chandler's defaults",
        "imdb",
        96,
        8,
        512,
        50.0,
        bf16=False,
        peer={"pad_to_max_length": True},
        ours={"bf16": "auto"},
    ),
    Row("sst2-fp32", "SST-2, batch 32, fp32 on both sides", "sst2", 1600, 32, 512, 3.0, bf16=False, peer=GROUPED),
    Row("eval-sst2", "evaluation, SST-2, bf16", "sst2", 32, 32, 512, 2.2, eval_rows=872),
    Row("eval-imdb256", "evaluation, IMDB, up to 256 tokens, bf16", "imdb", 16, 16, 256, 2.2, eval_rows=512),
    Row(
        "bert-base",
        "SST-2, batch 32, bf16, BERT-base-shaped",
        "sst2",
        640,
        32,
        512,
        2.7,
        model="bert-base-shaped",
        peer=GROUPED,
    ),
    Row(
        "bert-large",
        "SST-2, batch 32, bf16, BERT-large-shaped",
        "sst2",
        192,
        32,
        512,
        2.7,
        model="bert-large-shaped",
        peer=GROUPED,
    ),
]


def chosen(names):
    """The rows with these names, in their order; all without names."""
    unknown = set(names) - {row.name for row in ROWS}
    if unknown:
        known = ", ".join(row.name for row in ROWS)
        raise SystemExit(f"no such row: {', '.join(sorted(unknown))}; there are: {known}")
    return [row for row in ROWS if not names or row.name in names]
