"""Where a model's forward passes are watched: prefill, replay, chunked forward, decoding."""
