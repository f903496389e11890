"""asv benchmarks of lmc-verify: what is measured, and how to run and compare, is in docs/benchmarks.md."""
