"""Records as plots."""
