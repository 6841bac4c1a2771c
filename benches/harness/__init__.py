"""What the benchmarks share: the rows, the machine, both sides, the report."""
