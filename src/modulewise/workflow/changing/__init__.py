"""Change parts of a trained network: grow, swap, recalibrate, average."""
