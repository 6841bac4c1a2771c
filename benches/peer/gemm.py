"""torch's products of a linear layer, on request: what `benches/gemm.py` lets take turns with ours.

Each line on standard input is `torch PRECISION PASS ROWS INPUTS OUTPUTS SECONDS`; the answer is the median time of a
call in seconds. Tensors have the precision throughout, weights and their gradients too, so that nothing is converted.
"""

import statistics
import sys
import time

import torch

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def products(precision, rows, inputs, outputs):
    """One call of each pass."""
    dtype = DTYPES[precision]
    x, w, dy = (torch.randn(*dims).to(dtype) for dims in ((rows, inputs), (outputs, inputs), (rows, outputs)))
    return {
        "forward": lambda: torch.nn.functional.linear(x, w),
        "dX": lambda: dy @ w,
        "dW": lambda: dy.t() @ x,
    }


def median(call, seconds):
    warm = time.perf_counter() + seconds / 5
    while time.perf_counter() < warm:
        call()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main():
    for line in sys.stdin:
        _, precision, name, rows, inputs, outputs, seconds = line.split()
        call = products(precision, int(rows), int(inputs), int(outputs))[name]
        with torch.no_grad():
            print(median(call, float(seconds)), flush=True)


if __name__ == "__main__":
    main()
