"""Measure exact tiles beside the whole input and beside blended windows."""
