"""What several test modules need: tiny models, tokenizers, recordings, made-up records and devices."""
