"""Training runs side by side: one tensor program for many runs of one problem, each with its own batches."""
