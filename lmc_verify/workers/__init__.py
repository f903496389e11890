"""Processes that do the work of a run: one that dies takes its own task with it, and no other."""
