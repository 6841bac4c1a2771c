#!/usr/bin/env python3
"""Steps on a GPU, beside the HF Trainer on the same card.

    cargo bench --features cuda --bench train_step --no-run          # prints the program's path
    python3 benches/gpu.py --program PATH --peer-python python3

The peer's Python needs torch and transformers. Both sides take turns; the table has medians, and the share of
the card's matrix rate (measured with the steps) that the model's own operations reach: padding is no work.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path

PEER = Path(__file__).parent / "peer" / "hf_trainer_gpu.py"
SHAPES = {
    "minilm": {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096},
}
GOAL = {"speed": 2.0, "memory": 0.7}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="the compiled bench `train_step`")
    parser.add_argument("--peer-python", help="without it, chandler alone")
    parser.add_argument("--shapes", default="minilm,base")
    parser.add_argument("--tokens", default="128,512")
    parser.add_argument("--batches", default="32,128")
    parser.add_argument("--spread", type=float, default=0.0, help="how far lengths stray from --tokens, as a share")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="the peer also with torch.compile")
    parser.add_argument("--out", help="write what was measured as JSON")
    return parser.parse_args()


def last_json(command):
    output = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def ours(args, shape, tokens, batch):
    return last_json(
        [args.program, "--cuda", "--json", "--shape", shape, "--tokens", tokens, "--batch", batch]
        + ["--spread", args.spread, "--steps", args.steps]
    )


def peers(args, shape, tokens, batch, compiled):
    work = {"shape": SHAPES[shape], "batch": batch, "tokens": tokens, "spread": args.spread}
    work.update(steps=args.steps, compile=compiled)
    return last_json([args.peer_python, PEER, json.dumps(work)])


def flop_per_token(shape, tokens):
    """Of forward and backward: products with weights, and attention's, whose share grows with the length."""
    sizes = SHAPES[shape]
    d, i = sizes["hidden_size"], sizes["intermediate_size"]
    weights = 4 * d * d + 2 * d * i
    return 3 * sizes["num_hidden_layers"] * (2 * weights + 4 * tokens * d)


def middle(results, name):
    return statistics.median(result[name] for result in results)


def row(args, shape, tokens, batch):
    variants = [False, True] if args.compile else [False]
    own, peer = [], {compiled: [] for compiled in variants}
    for _ in range(args.rounds):
        own.append(ours(args, shape, tokens, batch))
        for compiled in variants if args.peer_python else []:
            peer[compiled].append(peers(args, shape, tokens, batch, compiled))
    speed = middle(own, "samples_per_second")
    rate = middle(own, "tokens_per_second") * flop_per_token(shape, tokens) / 1e9
    cells = [f"{shape} {tokens} x {batch}", f"{speed:.0f}", f"{100 * rate / middle(own, 'roof_gflops'):.0f} %"]
    for results in (results for results in peer.values() if results):
        other = middle(results, "samples_per_second")
        memory = middle(own, "device_memory_bytes") / middle(results, "device_memory_bytes")
        cells += [f"{other:.0f}", f"{speed / other:.2f}", f"{memory:.2f}"]
    print("| " + " | ".join(cells) + " |", flush=True)
    return {"shape": shape, "tokens": tokens, "batch": batch, "chandler": own, "peer": list(peer.values())}


def main():
    args = arguments()
    names = ["model, tokens x batch", "samples/s", "of the matrix rate"]
    for name in ["HF", "HF compiled"] if args.compile else ["HF"]:
        names += [f"{name} samples/s", f"times {name}", "memory"] if args.peer_python else []
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    rows = [
        row(args, shape, int(tokens), int(batch))
        for shape in args.shapes.split(",")
        for tokens in args.tokens.split(",")
        for batch in args.batches.split(",")
    ]
    print(f"\nGoals: {GOAL['speed']} times HF's speed, {GOAL['memory']} of its memory.")
    if args.out:
        Path(args.out).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
