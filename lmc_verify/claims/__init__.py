"""Claims, one module a theorem, and the verdicts that checks of them give."""
