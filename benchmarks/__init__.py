"""Benchmarks, one per file: rows, prompt, score. Imports no torch and nothing of ours from outside this package."""
