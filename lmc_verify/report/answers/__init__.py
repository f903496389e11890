"""What a report says first: what was asked of which estimator, and what was found, in sentences."""
