"""``python -m lmc_verify.cli``."""

from lmc_verify.cli.app import main

main()
