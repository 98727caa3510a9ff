"""Measure implicit models and their pruning."""
