"""Run by every Python of a rehearsal when it starts: waits for PyTorch to be imported."""

import importlib.machinery
import importlib.util
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))


def _run_the_one_behind():
    """The ``sitecustomize`` that would have been run without this one."""
    others = [path for path in sys.path if os.path.abspath(path or ".") != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


_run_the_one_behind()
if os.environ.get("FITPLAN_REHEARSAL_FOLDER"):
    from rehearsed import start

    start.when_imported()
