"""What a training run tells while it goes on, to callbacks that log it or act on it elsewhere."""
