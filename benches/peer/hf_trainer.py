"""The peer: one training or evaluation with the Hugging Face Trainer on the CPU.

    python hf_trainer.py WORK.json

WORK.json says what to do (see `../rows.py`); the last line of standard output is a JSON object with what the
Trainer reported, and the most memory that this process ever held.
"""

import csv
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

csv.field_size_limit(1 << 30)


class StepClock(TrainerCallback):
    """When each step ended, to tell a slow start from a slow training."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


def rows_of(path, tokenizer, work):
    """Token ids of a CSV file with the columns `text` and `label`."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    dataset = Dataset.from_dict(
        {"text": [row["text"] for row in rows], "label": [int(row["label"]) for row in rows]}
    )

    def tokenize(batch):
        padding = "max_length" if work["pad_to_max_length"] else False
        return tokenizer(
            batch["text"], truncation=True, max_length=work["max_seq_length"], padding=padding
        )

    return dataset.map(tokenize, batched=True, remove_columns=["text"])


def arguments(work):
    return TrainingArguments(
        output_dir=tempfile.mkdtemp(prefix="hf-trainer-"),
        use_cpu=True,
        bf16=work["bf16"],
        train_sampling_strategy="group_by_length" if work["group_by_length"] else "random",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **work["training_args"],
    )


def accuracy(prediction):
    hits = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"accuracy": float(hits.mean())}


def samples_per_second_after_start(ends, samples):
    """Speed over the last three quarters of the steps."""
    start = len(ends) // 4
    if start < 1 or len(ends) - start < 2:
        return None
    per_step = samples / len(ends)
    return per_step * (len(ends) - 1 - start) / (ends[-1] - ends[start])


def peak_resident_bytes():
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main():
    work = json.loads(Path(sys.argv[1]).read_text())
    set_seed(work["training_args"].get("seed", 42))
    tokenizer = AutoTokenizer.from_pretrained(work["model"])
    model = AutoModelForSequenceClassification.from_pretrained(work["model"], num_labels=2)
    train = rows_of(work["train"], tokenizer, work)
    clock = StepClock()
    trainer = Trainer(
        model=model,
        args=arguments(work),
        train_dataset=train,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
        callbacks=[clock],
    )
    result = {}
    if work["training_args"].get("max_steps") != 0:
        result.update(trainer.train().metrics)
        result["steady_samples_per_second"] = samples_per_second_after_start(
            clock.ends, len(train) * work["training_args"].get("num_train_epochs", 3)
        )
        result["log_history"] = trainer.state.log_history
    if work.get("eval"):
        result.update(trainer.evaluate(rows_of(work["eval"], tokenizer, work)))
    result["peak_resident_bytes"] = peak_resident_bytes()
    result["torch"] = torch.__version__
    result["threads"] = torch.get_num_threads()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
