"""`ext-classify plan`: measures the service, sizes batches and instances, estimates the cost."""
