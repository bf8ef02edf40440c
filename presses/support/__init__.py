"""What several presses need; a press of its own stands beside this folder."""
