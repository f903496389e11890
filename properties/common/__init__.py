"""What several test modules share: helpers, and oracles written from the mathematics alone."""
