"""Where a model's forward passes are watched: the prefill, a replay on top of it, reading on, and decoding."""
