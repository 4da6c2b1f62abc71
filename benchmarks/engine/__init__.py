"""Child processes, stored results and provenance, shared by all benchmarks."""
