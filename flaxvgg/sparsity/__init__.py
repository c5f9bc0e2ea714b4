"""How much is zero: counts, exact sums, the report, and what it says."""
