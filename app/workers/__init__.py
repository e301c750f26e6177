"""The processes that decode and predict, a core each, and what the service knows of them."""
