"""The classifier: everything that is true with or without HTTP."""
