"""Error bars and tests of paired samples."""
