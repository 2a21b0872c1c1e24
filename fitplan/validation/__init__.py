"""The validation runner: a real short run in a process of its own, measured against the prediction."""
