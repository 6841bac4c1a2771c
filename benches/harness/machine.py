"""What the machine is and who uses it, from /proc."""

import os
import time
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def description():
    cpu = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").open() if line.startswith("model name")),
        "unknown processor",
    )
    memory = next(int(line.split()[1]) for line in Path("/proc/meminfo").open() if line.startswith("MemTotal"))
    return {"cpu": cpu, "cores": os.cpu_count(), "isa": instruction_sets()[:1], "memory_gib": round(memory / 2**20)}


def instruction_sets():
    """Those that decide how fast products are, widest first."""
    flags = Path("/proc/cpuinfo").read_text()
    return [name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f" {name}" in flags]


def has_fast_bf16():
    """Whether the processor multiplies bf16 faster than fp32; where it does not, both sides are faster in fp32.

    Intel's Sapphire Rapids and later are made to do it in tiles (AMX); where a virtual machine hides these, products of
    bf16 pairs are at half the rate of fp32. AVX512-FP16 tells them from earlier ones.
    """
    flags = Path("/proc/cpuinfo").read_text()
    slow_pairs = "GenuineIntel" in flags and " avx512_fp16" in flags
    return " amx_bf16" in flags or (" avx512_bf16" in flags and not slow_pairs)


def busy_seconds():
    """Processor seconds that anybody has used since the machine started."""
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICK


def cpu_seconds(pid):
    """Processor seconds that a process has used; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICK


def peak_resident_bytes(pid):
    """The most memory that a process ever held; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def children(pid):
    """The processes that a process started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


class Quiet:
    """How much of the machine others used meanwhile: a measurement beside a compiler is worth nothing."""

    def __init__(self):
        self.began, self.busy = time.monotonic(), busy_seconds()

    def others_share(self, own_seconds):
        wall = time.monotonic() - self.began
        others = busy_seconds() - self.busy - own_seconds
        return round(max(others, 0.0) / (wall * os.cpu_count()), 3)
