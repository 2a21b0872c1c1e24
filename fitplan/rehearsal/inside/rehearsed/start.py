"""Begins when PyTorch is imported: true values, a watch over the memory, hollow checkpoints where they are asked for.

What is asked for stands in ``plan.json`` in the rehearsal's folder.
"""

import importlib.abc
import importlib.util
import json
import os
import sys
import threading


def folder():
    """Of this rehearsal."""
    return os.environ["FITPLAN_REHEARSAL_FOLDER"]


def plan():
    """What is asked for; nothing where nobody said anything."""
    try:
        with open(os.path.join(folder(), "plan.json"), encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return {}


def _on_torch(module):
    from rehearsed import values

    values.keep_true()
    if plan().get("watch"):
        from rehearsed import watch

        watch.begin(plan())


def _on_hub(module):
    from rehearsed import hollow

    hollow.stand_in(plan())


def _on_deepspeed(module):
    from rehearsed import watch

    watch.count_engine_steps(module)


def _on_datasets(module):
    from rehearsed import rows

    rows.stand_in(module, plan())


def _on_fake_tensors(module):
    from rehearsed import values

    values.stay_out_of_fake_mode(module)


_WAITING = {
    "torch": _on_torch,
    "torch._subclasses.fake_tensor": _on_fake_tensors,
    "huggingface_hub": _on_hub,
    "deepspeed": _on_deepspeed,
    "datasets": _on_datasets,
}


def join_world(size):
    """Be one of so many ranks, of which only those that the launcher started are there."""
    if size and "RANK" in os.environ:
        os.environ["WORLD_SIZE"] = str(size)


def when_imported():
    """Do what is to be done with a package as soon as it has been imported."""
    join_world(plan().get("world"))
    sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self):
        self._looking = threading.local()

    def find_spec(self, name, path=None, target=None):
        if name not in _WAITING or getattr(self._looking, "on", False):
            return None
        self._looking.on = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._looking.on = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, name)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, real, name):
        self._real, self._name = real, name

    def __getattr__(self, name):
        return getattr(self._real, name)

    def create_module(self, spec):
        return self._real.create_module(spec)

    def exec_module(self, module):
        self._real.exec_module(module)
        done = _WAITING.pop(self._name, None)
        if done is not None:
            done(module)
