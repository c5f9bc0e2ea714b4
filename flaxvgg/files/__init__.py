"""Files whole or not at all, one writer at a time, and what others wrote in them as plain text."""
