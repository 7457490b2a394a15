"""Fixtures and the count of skips."""
