"""What takes too long for a test: trials of the service as it really runs, each a command with figures."""
