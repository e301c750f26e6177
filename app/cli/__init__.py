"""The command `ext-classify`: a module for each subcommand."""
