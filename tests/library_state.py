"""What a trace leaves behind in the libraries: run in a fresh process, ``python tests/library_state.py KIND``.

It notes every attribute of every loaded module and class of the libraries, traces one job, the first in its process,
and prints what differs as a JSON list. Mappings, lists and sets of the libraries are compared by their content.
"""

import gc
import json
import os
import sys
import types
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "triton", "liger_kernel")

KINDS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "lora": {"method": "lora"},
    "qlora": {"method": "qlora"},
    "int8": {"method": "qlora", "quant": "int8"},
    "paged": {"method": "lora", "optim": "paged_adamw_8bit"},
    "liger": {"method": "lora", "use_liger_kernel": True},
    "flash": {"method": "lora", "attn": "flash_attention_2", "padding": "longest", "batch_size": 2},
}

OWN = {
    "torch.utils.hooks.RemovableHandle.next_id": "counts hooks",
    "torch.autograd.profiler._cupti_monitor_module": "imported when an optimizer first steps",
    "torch.autograd.profiler._cupti_monitor_checked": "the same",
    "torch.optim.adamw.AdamW.step": "``Optimizer._patch_step_function`` puts an inherited one into its class",
    "bitsandbytes.optim.adamw.AdamW.step": "the same",
    "torch.jit._builtins._builtin_table": "operators that were asked for",
    "torch.nn.modules.module.Module.smart_apply": "transformers adds it when it first builds a model",
    "triton.language.extra.modules": "is ``sys.modules``",
    "transformers.conversion_mapping._checkpoint_conversion_mapping_cache": "a table, made when it is first asked for",
    "transformers.utils.generic._registered_model_output_types": "output classes of modules imported meanwhile",
    "torch.utils._pytree.SUPPORTED_NODES": "the same",
    "torch.utils._pytree.SUPPORTED_SERIALIZED_TYPES": "the same",
    "torch.utils._pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE": "the same",
    "torch.export.dynamic_shapes.SUPPORTED_NODES": "the same",
    "triton.runtime.jit._triton_jit_function_registry": "kernels of modules imported meanwhile",
    "liger_kernel.backends.registry._REGISTRY": "the same",
    "liger_kernel.backends.registry._DISCOVERED": "the same",
    "liger_kernel.backends.registry._DISCOVERY_FAILURES": "the same",
    "liger_kernel.backends.registry._DISCOVERY_EVENTS": "the same",
    "liger_kernel.backends.dispatch._AVAILABLE_MEMO": "by compute capability",
}
"""What the libraries change themselves whenever they are used, in a real job as in a trace."""

GROWING = "transformers.models.auto.auto_mappings"
"""Tables that Liger's import of transformers' modules completes."""

Attribute = tuple[str, str]


def is_library(name: str) -> bool:
    return name.partition(".")[0] in LIBRARIES


def holders() -> Iterator[tuple[str, Any]]:
    """Every loaded module, and every class that one of them defines."""
    seen: set[int] = set()
    for name, module in list(sys.modules.items()):
        if not is_library(name) or not isinstance(module, types.ModuleType) or id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        for value in list(vars(module).values()):
            if is_class(value) and is_library(str(value.__module__)) and id(value) not in seen:
                seen.add(id(value))
                yield f"{value.__module__}.{value.__qualname__}", value


def content(value: Any) -> Any:
    """What a container holds, by identity; ``None`` for what is none, and for a library's own kinds."""
    if type(value) in (dict, defaultdict, OrderedDict):
        return {repr(key): id(item) for key, item in value.items()}
    if type(value) is list:
        return [id(item) for item in value]
    return {repr(item) for item in value} if type(value) is set else None


def is_class(value: Any) -> bool:
    """``isinstance`` would wake objects that stand for a class."""
    return issubclass(type(value), type)


def snapshot() -> dict[Attribute, tuple[Any, Any]]:
    """The attributes: each value itself, which keeps it from being freed, and its content."""
    return {
        (where, name): (value, content(value))
        for where, holder in holders()
        for name, value in list(vars(holder).items())
        if not name.startswith("__") or callable(value)
    }


def differences(before: Mapping[Attribute, tuple[Any, Any]]) -> Iterator[str]:
    """What is not as it was, and what is new in modules and classes that were there before."""
    after = snapshot()
    known = {where for where, _ in before}
    for (where, name), (value, held) in before.items():
        if f"{where}.{name}" in OWN or where == GROWING:
            continue
        if (where, name) not in after:
            yield f"{where}.{name} is gone"
            continue
        now, held_now = after[where, name]
        if now is not value and not (isinstance(value, int | float | str | bool) and now == value):
            yield f"{where}.{name} was {value!r:.80}, is {now!r:.80}"
        elif held != held_now:
            parts = sorted(map(str, set(held) ^ set(held_now))) or "other values"
            yield f"{where}.{name} holds something else: {parts!s:.200}"
    for (where, name), (value, _) in after.items():
        new = where in known and (where, name) not in before
        if new and f"{where}.{name}" not in OWN and not is_lazy(where, value):
            yield f"{where}.{name} is new: {value!r:.80}"


def is_lazy(where: str, value: Any) -> bool:
    """Whether a library has imported a module, or a name from one, when it was first asked for."""
    from transformers.utils.import_utils import _LazyModule

    return isinstance(value, types.ModuleType) or isinstance(sys.modules.get(where), _LazyModule)


def survivors() -> Iterator[str]:
    """Stand-ins that something still holds, such as a cache that was filled while they were there."""
    gc.collect()
    for one in gc.get_objects():
        code = one.__code__ if type(one) is types.FunctionType else None
        if code and "_for_this_thread.<locals>" in code.co_qualname:
            yield f"a stand-in is still held: that of {one.__qualname__}"


def foreign_to_liger() -> Iterator[str]:
    """Names of modeling modules, those that the trace imported among them, that lead to Liger."""
    for where, holder in list(holders()):
        if where.startswith("transformers."):
            for name, value in list(vars(holder).items()):
                if str(getattr(value, "__module__", "")).startswith("liger_kernel"):
                    yield f"{where}.{name} is Liger's"


def main(kind: str) -> None:
    import accelerate.utils  # noqa: F401
    import bitsandbytes.optim  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers

    if kind == "liger":
        import liger_kernel.transformers  # noqa: F401

    from families import FAMILIES

    import fitplan
    import fitplan.step.architecture
    import fitplan.trace.tracing

    assert "transformers.models.llama.modeling_llama" not in sys.modules
    before, modules, environment = snapshot(), set(sys.modules), dict(os.environ)
    dispatch = torch._C._dispatch_dump("aten::mul.Tensor")
    config = transformers.LlamaConfig(**FAMILIES["llama"])
    with fitplan.tracing_here():
        fitplan.check(config, trace=True, vram="80GiB", seq_len=16, **KINDS[kind])
    found = [*differences(before), *survivors(), *foreign_to_liger()]
    found += [
        f"{name} is a new module" for name in set(sys.modules) - modules if name.partition(".")[0] == "flash_attn"
    ]
    if torch._C._dispatch_dump("aten::mul.Tensor") != dispatch:
        found.append("aten::mul.Tensor has other kernels")
    found += [f"the environment has another {name}" for name, _ in environment.items() ^ os.environ.items()]
    with torch.device("meta"):
        if torch.empty(2).device.type != "meta":
            found.append("torch.empty takes no default device")
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
