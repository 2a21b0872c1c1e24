"""Recording the training step."""
