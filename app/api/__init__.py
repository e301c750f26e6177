"""The HTTP side: routes, bodies and what they are documented to be."""
