"""What was recorded of kvpress: how tests read it, and the scripts that record it."""
