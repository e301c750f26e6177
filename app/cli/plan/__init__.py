"""Capacity planning from a measurement: batch size, concurrency, instances, time and cost."""
