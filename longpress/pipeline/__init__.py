"""How text is produced: a prompt is read once, compressed by every press, and all answers are decoded together."""
