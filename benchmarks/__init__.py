"""asv benchmarks of lmc-verify: `asv run --python=same --quick --show-stderr` runs each one once."""
