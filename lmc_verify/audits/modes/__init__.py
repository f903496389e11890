"""Modes that a step runs under in an audit: what torch's functions compute in it is changed, or recorded."""
