"""What the benchmarks of speed, memory and rows share."""
