"""The terminal app: over the same library as the command line, with no rule about memory of its own."""

PROGRESS = "FITPLAN_PROGRESS"
"""An environment variable: with ``json`` a command tells its progress on stderr, one JSON object a line.

``{"doing": "tracing 2 of 2 layers"}`` says what is being done. A validation run also tells what each of its phases is
predicted to take, ``{"expected": [...]}``, and then each that is over, ``{"phase": {...}}``; both as
:class:`fitplan.validation.job.PhaseMemory`.
"""
