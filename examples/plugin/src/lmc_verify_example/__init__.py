"""An estimator, a model, a claim and a data set, which lmc-verify finds by the entry points of this package."""
