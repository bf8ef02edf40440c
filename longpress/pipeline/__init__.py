"""How text is produced: read once, compressed by every press, all answers decoded together."""
