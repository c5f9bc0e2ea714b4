"""Class activation maps: `explain`, formulas and conventions."""
