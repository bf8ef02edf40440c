"""What several suites need to turn rows into prompts and answers into scores; suites stand beside it."""
