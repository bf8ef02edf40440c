"""Presses inside other libraries, in the form that their users know; imported by name only."""
