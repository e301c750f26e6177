"""Measures a trained network: metrics, cross-validation, robustness and the report."""
