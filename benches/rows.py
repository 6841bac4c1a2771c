#!/usr/bin/env python3
"""What rows cost: preparation, memory and an epoch from a thousand rows to a million, with a cold and a warm token cache.

    cargo build --release
    python3 benches/rows.py target/release/chandler                                 # a tiny BERT: the data path is most of the work
    python3 benches/rows.py target/release/chandler --model MINILM --max-steps 1    # a real tokenizer, and the time to the first step
    python3 benches/rows.py target/release/chandler --model MINILM --max-steps 1 --csv FILE   # rows of one's own (text,label)

Each size is uploaded once and trained on twice. Times are between events by the trainer's own clock, except `start`, which begins with the
process. `prepare` is tokenising, or checking what was tokenised before. `epoch` is from the first step to the end of training without
evaluation and checkpoint. Rows are made from a seed: 3 to 20 words, of the tokenizer's vocabulary where it has English ones.
"""
import argparse, json, os, random, socket, struct, subprocess, sys, tempfile, time, urllib.request
from datetime import datetime
from pathlib import Path

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
HIDDEN, LAYERS, INNER, POSITIONS = 32, 1, 64, 64


def tiny_tokenizer(words):
    special = [
        {"id": i, "content": w, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, w in enumerate(SPECIAL)
    ]
    single = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]
    pair = single + [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {
            "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}, "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                  "vocab": {w: i for i, w in enumerate(words)}},
    }


def write_tiny(folder):
    """One layer of 32 numbers with random weights."""
    folder.mkdir()
    letters = "abcdefghijklmnopqrst"
    words = SPECIAL + [a + b + c for a in letters for b in "aeiou" for c in letters]
    config = {
        "architectures": ["BertModel"], "model_type": "bert", "vocab_size": len(words), "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
        "num_attention_heads": 1, "intermediate_size": INNER, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "initializer_range": 0.02,
        "layer_norm_eps": 1e-12, "pad_token_id": 0,
    }
    shapes = {f"embeddings.{name}_embeddings.weight": [rows, HIDDEN]
              for name, rows in (("word", len(words)), ("position", POSITIONS), ("token_type", 2))}
    shapes |= {f"embeddings.LayerNorm.{part}": [HIDDEN] for part in ("weight", "bias")}
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        dense = {f"attention.self.{n}": (HIDDEN, HIDDEN) for n in ("query", "key", "value")}
        dense |= {"attention.output.dense": (HIDDEN, HIDDEN), "intermediate.dense": (INNER, HIDDEN), "output.dense": (HIDDEN, INNER)}
        for name, (out, inp) in dense.items():
            shapes |= {prefix + name + ".weight": [out, inp], prefix + name + ".bias": [out]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {prefix + name + ".weight": [HIDDEN], prefix + name + ".bias": [HIDDEN]}
    shapes |= {"pooler.dense.weight": [HIDDEN, HIDDEN], "pooler.dense.bias": [HIDDEN]}
    rng, header, data = random.Random(1), {}, b""
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        norm = "LayerNorm.weight" in name
        values = [1.0 if norm else rng.gauss(0, 0.02) for _ in range(count)]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * count]}
        data += struct.pack(f"<{count}f", *values)
    head = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + data)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tiny_tokenizer(words)))


def words_of(model):
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    return sorted(w for w in vocabulary if w.isascii() and w.isalpha() and len(w) > 2)


def synthetic(rows, words):
    rng = random.Random(rows)
    lines = ["text,label"]
    for i in range(rows):
        lines.append(" ".join(rng.choices(words, k=rng.randint(3, 20))) + ("," + ("no", "yes")[i % 2]))
    return ("\n".join(lines) + "\n").encode()


class Server:
    def __init__(self, program, data_dir, threads):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{s.getsockname()[1]}"
        self.base, self.data_dir = f"http://{address}", data_dir
        command = [program, "serve", "--listen", address, "--data-dir", data_dir, "--slots", "1", "--drain"]
        command += ["--threads", str(threads)] if threads else []
        log = open(data_dir / "server.log", "wb")
        self.process = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ, HF_HUB_OFFLINE="1", RUST_LOG="warn"))
        for _ in range(600):
            try:
                return self.call("/readyz") and None
            except OSError:
                time.sleep(0.05)
        sys.exit("the server does not start")

    def call(self, path, data=None, kind="application/json"):
        request = urllib.request.Request(self.base + path, data, {"content-type": kind})
        with urllib.request.urlopen(request, timeout=600) as answer:
            text = answer.read()
            return json.loads(text) if text[:1] in b"{[" else text

    def events(self, job):
        found = []
        while True:
            page = self.call(f"/v1/jobs/{job}/events?limit=1000&after={found[-1]['seq'] if found else 0}")
            found += page["data"]
            if not page["has_more"]:
                return found


def started_at(data_dir):
    """When the running trainer's process began, in seconds since 1970; the kernel counts in hundredths."""
    boot = next(int(line.split()[1]) for line in open("/proc/stat") if line.startswith("btime"))
    uptime_now = float(open("/proc/uptime").read().split()[0])
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            arguments = open(f"/proc/{entry}/cmdline", "rb").read().split(b"\0")
            if b"train" in arguments and any(str(data_dir).encode() in a for a in arguments):
                ticks = int(open(f"/proc/{entry}/stat").read().rsplit(")", 1)[1].split()[19])
                return time.time() - (uptime_now - ticks / os.sysconf("SC_CLK_TCK"))
        except OSError:
            continue
    return None


def train(server, model, dataset, arguments):
    args = {"num_train_epochs": 1, "per_device_train_batch_size": arguments.batch, "save_strategy": "no", "logging_first_step": True,
            "logging_steps": 1_000_000, "seed": 1}
    if arguments.max_steps:
        args["max_steps"] = arguments.max_steps
    body = {"model": str(model), "task": "sequence_classification", "dataset": {"train": dataset}, "max_seq_length": 64, "training_args": args}
    job = server.call("/v1/jobs", json.dumps(body).encode())["id"]
    began = None
    while True:
        began = began or started_at(server.data_dir)
        view = server.call(f"/v1/jobs/{job}")
        if view["status"] in ("succeeded", "failed", "cancelled"):
            break
        time.sleep(0.002 if began is None else 0.05)
    if view["status"] != "succeeded":
        sys.exit(json.dumps(view["error"]))
    at = {}
    events = server.events(job)
    for event in events:
        name = event["data"].get("phase", event["type"])
        at.setdefault(name, datetime.fromisoformat(event["created_at"]).timestamp())
    if arguments.verbose:
        for event in events:
            moment = datetime.fromisoformat(event["created_at"]).timestamp() - (began or 0)
            print(f"    {moment:8.3f} {event['type']} {json.dumps(event['data'])[:150]}", file=sys.stderr)
    loading = next(datetime.fromisoformat(e["created_at"]).timestamp() for e in events
                   if e["data"].get("phase") == "resolving_model" and datetime.fromisoformat(e["created_at"]).timestamp() >= at["tokenizing"])
    return {
        "prepare_s": loading - at["tokenizing"],
        "first_step_s": at["metrics"] - began if began else None,
        "epoch_s": at["saving"] - at["metrics"],
        "peak_mb": view["metrics"]["train_peak_resident_bytes"] / 1e6,
        "steps": view["progress"]["global_step"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--rows", default="1000,10000,100000,1000000")
    parser.add_argument("--model", type=Path, help="folder of a base model; without it a tiny one is made")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeat", type=int, default=1, help="warm trainings after the cold one")
    parser.add_argument("--verbose", action="store_true", help="every event, with the seconds since the process began")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder).resolve()
        model = arguments.model and arguments.model.resolve()
        if not model:
            model = data_dir / "tiny"
            write_tiny(model)
        server = Server(arguments.program, data_dir, arguments.threads)
        try:
            print(f"{'rows':>9} {'cache':>5} {'prepare s':>9} {'µs/row':>7} {'first step s':>12} {'epoch s':>8} {'µs/row':>7} {'peak MB':>8} {'cache MB':>8}")
            for rows in [0] if arguments.csv else map(int, arguments.rows.split(",")):
                csv = arguments.csv.read_bytes() if arguments.csv else synthetic(rows, words_of(model))
                uploaded = server.call("/v1/datasets?name=rows", csv, "text/csv")
                for cache in ["cold"] + ["warm"] * arguments.repeat:
                    seen = train(server, model, uploaded["id"], arguments)
                    trained = min(seen["steps"] * arguments.batch, uploaded["rows"])
                    size = sum(f.stat().st_size for f in (data_dir / "datasets" / uploaded["id"] / "tokens").glob("*"))
                    first = f"{seen['first_step_s']:12.2f}" if seen["first_step_s"] else f"{'?':>12}"
                    print(f"{uploaded['rows']:9} {cache:>5} {seen['prepare_s']:9.3f} {1e6 * seen['prepare_s'] / uploaded['rows']:7.2f} {first} "
                          f"{seen['epoch_s']:8.2f} {1e6 * seen['epoch_s'] / trained:7.2f} {seen['peak_mb']:8.1f} {size / 1e6:8.2f}", flush=True)
        finally:
            server.process.terminate()
            server.process.wait(60)


if __name__ == "__main__":
    main()
