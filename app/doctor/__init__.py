"""What could be wrong, looked at one by one before somebody has to find it out by errors."""
