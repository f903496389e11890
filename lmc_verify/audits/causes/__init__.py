"""Why a step is biased: known defects enacted, and the search for the smallest set that explains."""
