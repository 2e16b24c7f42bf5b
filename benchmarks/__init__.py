"""The causal benchmark: problems, arms, runs, grading, statistics, report."""
