"""Saves a BERT classifier with random weights for both sides to start from.

    python random_bert.py FOLDER TOKENIZER_FOLDER '{"hidden_size": 768, …}'
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification


def main():
    folder, tokenizer, shape = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30522, num_labels=2, **shape)
    BertForSequenceClassification(config).save_pretrained(folder)
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"]:
        shutil.copy(tokenizer / name, folder / name)


if __name__ == "__main__":
    main()
