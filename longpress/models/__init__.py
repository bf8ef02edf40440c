"""Loading models and tokenizers: from a folder, a GGUF file, the hub or an installed package."""
