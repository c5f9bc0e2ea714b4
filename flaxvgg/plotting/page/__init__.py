"""The one format of pages: a file that needs nothing else, and the viewer of maps within it."""
