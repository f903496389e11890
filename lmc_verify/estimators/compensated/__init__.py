"""The compensated family: one-shot estimators that differ in what they put at the halo, in each pass."""
