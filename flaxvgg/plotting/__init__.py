"""Figures and pages; matplotlib is imported when the first is drawn."""
