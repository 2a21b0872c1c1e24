"""Model configs."""
