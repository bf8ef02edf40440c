"""Many jobs: how a multirun is folded into as few as share a prefill, and where they run."""
