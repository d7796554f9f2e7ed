"""Training runs that are divided over processes: weights, gradients and optimizer states."""
