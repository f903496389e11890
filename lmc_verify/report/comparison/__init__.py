"""Two runs side by side: what changed, what is a regression, and the pages that say it."""
