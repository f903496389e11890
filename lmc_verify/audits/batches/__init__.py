"""Batches of a training loop: by which law they come, and which nodes they hold."""
