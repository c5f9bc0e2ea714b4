"""Whole files or none, one writer at a time, and foreign text made plain."""
