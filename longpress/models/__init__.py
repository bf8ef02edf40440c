"""Models and tokenizers, from a folder, a hub or a package."""
