"""Runs, their records, their tables."""
