"""Class activation maps: `explain`, the methods' formulas, and the conventions they come in."""
