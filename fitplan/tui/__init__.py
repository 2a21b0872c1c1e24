"""The terminal app: over the same library as the command line, with no rule about memory of its own."""

PROGRESS_LINES = "FITPLAN_PROGRESS"
"""An environment variable: with ``lines`` a command tells its progress line by line on stderr, as the app reads it."""
