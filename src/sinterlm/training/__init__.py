"""Training: rows to tensors, log-probabilities, the reference, one trainer for every objective."""
