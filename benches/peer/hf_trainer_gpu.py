"""The peer on a GPU: steps of the Hugging Face Trainer on a BERT of random weights and rows of random tokens.

    python hf_trainer_gpu.py '{"shape": {...}, "batch": 32, "tokens": 128, "spread": 0, "steps": 60, "compile": false}'

Its best settings: bf16, SDPA attention, fused AdamW, dynamic padding with rows grouped by length; on request
compiled. The last line of standard output is a JSON object.
"""

import json
import random
import sys
import tempfile
import time

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments


class Clock(TrainerCallback):
    """Times of step ends, each after the GPU has done its work up to then."""

    def __init__(self, first, last):
        self.first, self.last, self.times = first, last, {}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in (self.first, self.last):
            torch.cuda.synchronize()
            self.times[state.global_step] = time.perf_counter()


def rows_of(work, count):
    """As `benches/train_step` draws them: lengths within `spread` of `tokens`, ids at random."""
    draw = random.Random(1)
    low, high = work["tokens"] * (1 - work["spread"]), work["tokens"] * (1 + work["spread"])
    rows = []
    for _ in range(count):
        length = max(2, min(512, round(draw.uniform(low, high))))
        ids = [draw.randrange(1000, 30000) for _ in range(length)]
        rows.append({"input_ids": ids, "labels": draw.randrange(2), "length": length})
    return rows


def collate(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    pad = lambda values, fill: values + [fill] * (longest - len(values))
    return {
        "input_ids": torch.tensor([pad(row["input_ids"], 0) for row in rows]),
        "attention_mask": torch.tensor([pad([1] * len(row["input_ids"]), 0) for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def main():
    work = json.loads(sys.argv[1])
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30522, num_labels=2, **work["shape"])
    model = BertForSequenceClassification._from_config(config, attn_implementation="sdpa")
    steps = work["steps"]
    rows = rows_of(work, work["batch"] * steps)
    clock = Clock(steps // 4, steps)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=tempfile.mkdtemp(prefix="hf-trainer-"),
            per_device_train_batch_size=work["batch"],
            max_steps=steps,
            bf16=True,
            optim="adamw_torch_fused",
            torch_compile=work["compile"],
            train_sampling_strategy="group_by_length" if work["spread"] else "random",
            dataloader_num_workers=4,
            save_strategy="no",
            logging_steps=steps,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        ),
        train_dataset=rows,
        data_collator=collate,
        callbacks=[clock],
    )
    trainer.train()
    seconds = clock.times[clock.last] - clock.times[clock.first]
    free, everything = torch.cuda.mem_get_info()
    print(
        json.dumps(
            {
                "samples_per_second": work["batch"] * (clock.last - clock.first) / seconds,
                "device_memory_bytes": everything - free,
                "torch": torch.__version__,
                "device": torch.cuda.get_device_name(),
            }
        )
    )


if __name__ == "__main__":
    main()
