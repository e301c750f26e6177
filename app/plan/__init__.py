"""How large a batch, how many at once, how many instances, and what it takes: measured, then worked out."""
