"""Run a schedule over a partition, in this process."""
