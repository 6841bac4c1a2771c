"""Checks that an exported model is a Hugging Face model: `transformers` loads it and gives our logits.

Run on request (it needs torch and transformers, see README):

    python tests/hf_check.py path/to/checkpoint-120 path/to/chandler

Compares, for texts of different lengths, the probabilities of `pipeline("text-classification")` and the
logits of `AutoModelForSequenceClassification` with those of `chandler predict --json`, to 1e-4.
"""

import json
import math
import subprocess
import sys

TEXTS = [
    "good",
    "The courier left my parcel in the rain and the box is soaked.",
    "I was charged twice for March; please check, and send me a corrected invoice. " * 3,
    "it is , by turns , dull and dazzling \u2014 na\u00efve, too",
]


def main() -> None:
    model_dir, chandler = sys.argv[1], sys.argv[2]
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerState,
        pipeline,
    )
    import torch

    length = json.load(open(f"{model_dir}/chandler.json"))["max_seq_length"]
    model, info = AutoModelForSequenceClassification.from_pretrained(
        model_dir, output_loading_info=True
    )
    assert not info["missing_keys"], info
    unexpected = [k for k in info["unexpected_keys"] if "position_ids" not in k]
    assert not unexpected, info
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    TrainerState.load_from_json(f"{model_dir}/trainer_state.json")

    lines = subprocess.run(
        [chandler, "predict", "--json", model_dir, *TEXTS], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    worst = 0.0
    for text, line in zip(TEXTS, lines, strict=True):
        ours = json.loads(line)["scores"]
        theirs = {
            x["label"]: x["score"] for x in classify([text], truncation=True, max_length=length)[0]
        }
        assert ours.keys() == theirs.keys(), (ours, theirs)
        worst = max(worst, max(abs(ours[k] - theirs[k]) for k in ours))
        with torch.no_grad():
            batch = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
            logits = model(**batch).logits[0].tolist()
        # Logits up to the constant that softmax cancels.
        logs = [math.log(ours[model.config.id2label[i]]) for i in range(len(logits))]
        shift = sum(a - b for a, b in zip(logits, logs)) / len(logits)
        worst = max(worst, max(abs(a - b - shift) for a, b in zip(logits, logs)))
    print(f"largest difference {worst:.2e}")
    assert worst < 1e-4, worst


if __name__ == "__main__":
    main()
