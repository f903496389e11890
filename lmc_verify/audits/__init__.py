"""Audits: is the gradient of a training step unbiased; if not, how large is the bias, where, and why?"""
