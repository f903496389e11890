"""What draws of batches show of a bias: the difference from Backward SGD on the same batch, its range and its mean."""
