"""The theorems of LMC, one module each, named by the claim's id."""
