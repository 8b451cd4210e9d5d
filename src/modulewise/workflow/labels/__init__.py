"""Train with few labels: hidden parts from pairs, an output layer from a few labelled examples."""
