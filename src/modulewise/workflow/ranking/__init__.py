"""Which part fits a task: features from one pass, scores, baselines, stitching as ground truth."""
