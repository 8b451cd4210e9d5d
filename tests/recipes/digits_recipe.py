"""A recipe that trains in a second."""

TEXT = """
title = "Digits in two parts"
paper = "A. Author, A paper, Venue 2020"
link = "https://arxiv.org/abs/0000.00000"
proves = "dgl"
data = "digits"
measure = "error"
device = "cpu"
minutes = 0.1
paper_epochs = 10
seeds = [0, 1]
departures = ["It is small."]

[experiment]
model = "mlp"
cuts = ["fc2"]
epochs = 4
batch_size = 64
schedule_lr = "steps"
milestones = [2]
decay = 0.5

[quick]
epochs = 1
train_limit = 100
test_limit = 40

[[rows]]
method = "backprop"
published = 2.5
source = "table 1"

[[rows]]
method = "dgl:head=linear"
neighbour = "backprop"
published = 1.5
source = "table 1"

[rows.experiment]
lr = 0.1
"""
