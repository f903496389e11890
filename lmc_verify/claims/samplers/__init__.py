"""Claims about sampling estimators, one module each, named by the claim's id."""
