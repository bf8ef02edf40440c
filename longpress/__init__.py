"""A benchmark harness for KV-cache compression in long-context language models."""
