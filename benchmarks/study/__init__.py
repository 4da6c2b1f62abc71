"""The parts of a study: plan, grid of runs, statistics, report."""
