"""Records as tables for people and for papers."""
