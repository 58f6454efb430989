"""Measurement: what a candidate does compared with its parent, never whether that is allowed."""
