"""Follows the memory of one rehearsed process: where its peak is, what it is made of, and how the program ended.

PyTorch's own history of allocations tells every allocation and release. What the program was doing is marked in it:
optimizers tell of their steps, and backward is seen as it begins and ends. At an optimizer step parameters, gradients
and states are known by their addresses; they name the allocations that are live then.

Lines go to ``process-PID.jsonl`` while the program runs, the account of the whole to ``account-PID.json`` at its end.
"""

import atexit
import gc
import json
import os
import sys
import threading
import time
import traceback

import torch

from rehearsed import start, values

MOST_EVENTS = 4_000_000
LARGEST = 12
"""How many groups of allocations an account names."""
LIBRARIES = (
    "torch", "transformers", "peft", "accelerate", "bitsandbytes", "trl", "deepspeed", "axolotl", "llamafactory",
    "unsloth", "torchtune", "liger_kernel",
)  # fmt: skip
"""Whose versions are told."""
TIMELINE = 600
"""Points of the timeline."""
MOST_SCANS = 4
"""All modules are looked through when an optimizer steps first: some packages try one out before the training, and some
programs have one optimizer a parameter."""
LINGER_SECONDS = 20
"""After the account is written the program may take so long to end by itself."""

_watch = None


def begin(plan):
    """Watch this process as soon as it uses CUDA."""
    global _watch
    _watch = Watch(plan)
    values.leave_alone(*vars(Watch).values(), *globals().values())
    torch.cuda._lazy_call(_watch.cuda_is_used)


class Watch:
    """What is known of this process."""

    def __init__(self, plan):
        self.steps_wanted = plan.get("steps") or 0
        self.marks = []
        self.labels = []
        self.steps = {}
        self.engine_steps = None
        self.out_of_memory = None
        self.is_finished = False
        self.began = time.time()
        self.told = 0.0

    # --- what is watched ----------------------------------------------------------------------------------------------

    def cuda_is_used(self):
        """CUDA is initialised: record from here on."""
        torch.cuda.memory._record_memory_history(max_entries=MOST_EVENTS, stacks="python", context="alloc")
        torch._C._cuda_attach_out_of_memory_observer(self.ran_out)
        from torch.optim import optimizer

        optimizer.register_optimizer_step_pre_hook(self.before_step)
        optimizer.register_optimizer_step_post_hook(self.after_step)
        self.see_backward()
        self.see_first_forward()
        self.mark("load")
        atexit.register(self.finish)

    def see_backward(self):
        """Backward is run by one function, under two names."""
        real = torch.autograd.graph._engine_run_backward

        def run(*args, **kwargs):
            self.mark("backward")
            try:
                return real(*args, **kwargs)
            finally:
                self.mark("forward")

        torch.autograd.graph._engine_run_backward = run
        torch.autograd._engine_run_backward = run

    def see_first_forward(self):
        """What comes before is loading; some programs generate before they train."""

        def seen(module, args):
            if self.marks[-1][1] == "load" and any(parameter.is_cuda for parameter in module.parameters()):
                hook.remove()
                self.mark("forward")

        hook = torch.nn.modules.module.register_module_forward_pre_hook(seen)

    def mark(self, phase, tell=False):
        """The program goes into ``phase``."""
        if self.is_finished:
            return
        stats = torch.cuda.memory_stats()
        self.marks.append((int(stats.get("allocation.all.allocated", 0)), phase, self.done()))
        now = time.time()
        if now - self.told > 0.25 or tell:
            self.told = now
            self.tell(phase, stats)

    def tell(self, phase, stats):
        line = {
            "rank": rank(),
            "phase": phase,
            "step": self.done() + 1,
            "allocated_bytes": int(stats.get("allocated_bytes.all.current", 0)),
            "reserved_bytes": int(stats.get("reserved_bytes.all.current", 0)),
        }
        with open(os.path.join(start.folder(), "process-%d.jsonl" % os.getpid()), "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def done(self):
        """Optimizer steps that are over."""
        if self.engine_steps is not None:
            return self.engine_steps
        return min(self.steps.values(), default=0)

    def before_step(self, optimizer, args, kwargs):
        self.mark("optimizer")
        self.labels.append((self.position(), self.names_of(optimizer, states=False)))

    def after_step(self, optimizer, args, kwargs):
        self.steps[id(optimizer)] = self.steps.get(id(optimizer), 0) + 1
        self.labels.append((self.position(), self.names_of(optimizer, states=True)))
        if self.engine_steps is None:
            self.step_over()

    def step_over(self):
        self.mark("forward", tell=True)
        if self.steps_wanted and self.done() >= self.steps_wanted and not self.is_finished:
            self.finish("steps")
            leave_for_good()
            raise SystemExit(0)

    def position(self):
        return int(torch.cuda.memory_stats().get("allocation.all.allocated", 0))

    def names_of(self, optimizer, states):
        """Category by address, of what is live at a step."""
        found = {}
        if not states and id(optimizer) not in self.steps and len(self.steps) < MOST_SCANS:
            found.update(self.names_of_weights())
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                _name(found, getattr(parameter, "grad", None), "gradients")
        if states:
            for state in optimizer.state.values():
                for value in state.values() if isinstance(state, dict) else ():
                    _name(found, value, "optimizer states")
                    for inner in value.values() if isinstance(value, dict) else ():
                        _name(found, inner, "optimizer states")
        return found

    def names_of_weights(self):
        """Of every module there is."""
        found = {}
        modules = [one for one in gc.get_objects() if issubclass(type(one), torch.nn.Module)]
        parameters = [p for module in modules for p in module._parameters.values() if p is not None]
        some_are_frozen = any(not p.requires_grad for p in parameters)
        for parameter in parameters:
            adapter = some_are_frozen and parameter.requires_grad
            _name(found, parameter, "adapter weights" if adapter else "base weights")
            for holder in (
                getattr(parameter, "quant_state", None),
                getattr(parameter.__dict__.get("quant_state"), "state2", None),
                parameter,
            ):
                for value in vars(holder).values() if hasattr(holder, "__dict__") else ():
                    if value is not parameter.grad:
                        _name(found, value, "base weights")
        for module in modules:
            for buffer in module._buffers.values():
                _name(found, buffer, "base weights")
        return found

    def ran_out(self, device, asked, total, free):
        """The allocator found no room, and has given back what it could. The program may go on."""
        stats = torch.cuda.memory_stats(device)
        self.out_of_memory = {
            "rank": rank(),
            "asked_bytes": int(asked),
            "free_bytes": int(free),
            "allocated_bytes": int(stats.get("allocated_bytes.all.current", 0)),
            "reserved_bytes": int(stats.get("reserved_bytes.all.current", 0)),
            "phase": self.marks[-1][1] if self.marks else "load",
            "step": self.done() + 1,
            "where": _where(
                {"filename": f.filename, "line": f.lineno, "name": f.name} for f in reversed(traceback.extract_stack())
            ),
        }
        try:
            self.out_of_memory["held"] = self.account()["peak"]["categories"]
        except Exception as error:
            self.out_of_memory["held"] = {
                "not told apart (%s)" % type(error).__name__: int(stats.get("allocated_bytes.all.current", 0))
            }

    # --- the account --------------------------------------------------------------------------------------------------

    def finish(self, why="end"):
        """Write the account of the whole run, once."""
        if self.is_finished:
            return
        try:
            account = self.account()
        except Exception:
            account = {"defect": traceback.format_exc()}
        self.is_finished = True
        account.update(rank=rank(), ended=why, out_of_memory=self.out_of_memory, seconds=time.time() - self.began,
                       assumed=dict(values.assumed), versions=versions())  # fmt: skip
        path = os.path.join(start.folder(), "account-%d.json" % os.getpid())
        with open(path + ".draft", "w", encoding="utf-8") as file:
            json.dump(account, file)
        os.replace(path + ".draft", path)
        torch.cuda.memory._record_memory_history(enabled=None)

    def account(self):
        """Peaks, phase by phase; what is live at the highest; the timeline."""
        device = torch.cuda.current_device()
        events = torch.cuda.memory._snapshot(device)["device_traces"][device]
        history = History(events, self.marks, self.labels)
        stats = torch.cuda.memory_stats(device)
        return {
            "device": device,
            "steps": self.done(),
            "peak_allocated_bytes": history.most_allocated,
            "peak_reserved_bytes": history.most_reserved,
            "device_bytes": most_of_device(device),
            "retries": int(stats["num_alloc_retries"]),
            "phases": history.phases(),
            "peak": history.peak(),
            "timeline": history.timeline(),
        }


class History:
    """The events of one device, gone through once."""

    def __init__(self, events, marks, labels):
        self.moments = marks
        self.events = events
        self.most_allocated = self.most_reserved = 0
        self.at = -1
        self.births = {}
        self.category = {}
        self.by_phase = {}
        self.points = []
        self.live_at_peak = {}
        self.walk(labels)

    def walk(self, labels):
        live, allocated, reserved, count, mark, label = {}, 0, 0, 0, -1, 0
        segments = {}
        for place, event in enumerate(self.events):
            action, size, address = event["action"], event["size"], event.get("addr")
            if action == "alloc":
                while mark + 1 < len(self.moments) and self.moments[mark + 1][0] <= count:
                    mark += 1
                while label < len(labels) and labels[label][0] <= count:
                    self.put_names(live, labels[label][1])
                    label += 1
                live[address] = place
                self.births[place] = (size, mark)
                allocated += size
                count += 1
            elif action == "free_completed":
                if live.pop(address, None) is not None:
                    allocated -= size
            elif action in ("segment_alloc", "segment_map"):
                segments[address] = size
                reserved += size
            elif action in ("segment_free", "segment_unmap"):
                reserved -= size
            else:
                continue
            self.see(place, mark, allocated, reserved, live)
        while label < len(labels):
            self.put_names(live, labels[label][1])
            label += 1

    def put_names(self, live, names):
        for address, category in names.items():
            birth = live.get(address)
            if birth is not None:
                self.category[birth] = category

    def see(self, place, mark, allocated, reserved, live):
        phase = self.moments[mark][1:] if mark >= 0 else ("load", 0)
        most = self.by_phase.setdefault(phase, [0, 0])
        most[0], most[1] = max(most[0], allocated), max(most[1], reserved)
        self.points.append((place, allocated, reserved))
        self.most_reserved = max(self.most_reserved, reserved)
        if allocated > self.most_allocated:
            self.most_allocated, self.at = allocated, place

    def phases(self):
        return [
            {"phase": phase, "step": step + 1, "allocated_bytes": most[0], "reserved_bytes": most[1]}
            for (phase, step), most in self.by_phase.items()
        ]

    def live(self):
        """The allocations that are live at the peak."""
        found = {}
        for place, event in enumerate(self.events[: self.at + 1]):
            if event["action"] == "alloc":
                found[event["addr"]] = place
            elif event["action"] == "free_completed":
                found.pop(event["addr"], None)
        return found.values()

    def peak(self):
        categories, groups = {}, {}
        phase = ("load", 0)
        for place in self.live():
            size, mark = self.births[place]
            born = self.moments[mark][1:] if mark >= 0 else ("load", 0)
            category = self.category.get(place) or _guess(born[0])
            categories[category] = categories.get(category, 0) + size
            key = (category, born[0], _where(self.events[place].get("frames", ())))
            group = groups.setdefault(key, [0, 0])
            group[0], group[1] = group[0] + size, group[1] + 1
            if place == self.at:
                phase = born
        largest = sorted(groups.items(), key=lambda item: -item[1][0])[:LARGEST]
        return {
            "phase": phase[0],
            "step": phase[1] + 1,
            "where": _where(self.events[self.at].get("frames", ())) if self.at >= 0 else "",
            "categories": dict(sorted(categories.items(), key=lambda item: -item[1])),
            "largest": [
                {"category": key[0], "phase": key[1], "where": key[2], "bytes": size, "count": count}
                for key, (size, count) in largest
            ],
        }

    def timeline(self):
        """Points of event, allocated, reserved: of each stretch the highest."""
        stretch = -(-len(self.points) // TIMELINE) or 1
        pieces = [self.points[i : i + stretch] for i in range(0, len(self.points), stretch)]
        starts = [self.births_before(mark) for mark in self.moments]
        return {
            "points": [(piece[0][0], max(p[1] for p in piece), max(p[2] for p in piece)) for piece in pieces],
            "phases": [(place, mark[1], mark[2] + 1) for place, mark in zip(starts, self.moments)],
        }

    def births_before(self, mark):
        places = self._places()
        return places[min(mark[0], len(places) - 1)] if places else 0

    def _places(self):
        if not hasattr(self, "_known_places"):
            self._known_places = list(self.births)
        return self._known_places


def _guess(phase):
    """What has no name at an optimizer step, by when it was made."""
    return {"load": "base weights", "optimizer": "temporaries", "backward": "temporaries"}.get(phase, "activations")


def _name(found, value, category):
    tensors = [value]
    if isinstance(value, torch.Tensor) and hasattr(value, "__tensor_flatten__"):
        tensors = [getattr(value, name) for name in value.__tensor_flatten__()[0]]
    for tensor in tensors:
        if type(tensor).__name__ == "DTensor":
            tensor = tensor._local_tensor
        if isinstance(tensor, torch.Tensor) and tensor.is_cuda:
            try:
                found[tensor.untyped_storage().data_ptr()] = category
            except (RuntimeError, NotImplementedError):
                pass


_OWN = os.path.dirname(os.path.abspath(__file__))
_TORCH = os.path.dirname(torch.__file__) + os.sep


def _where(frames):
    """The innermost line that is neither PyTorch's nor ours."""
    outer = ""
    for frame in frames:
        name = frame["filename"]
        if name.startswith(_OWN) or name in ("??", _TORCH + "_ops.py") or name.startswith("<"):
            continue
        text = "%s:%d %s" % (_short(name), frame["line"], frame["name"])
        if not name.startswith(_TORCH):
            return text
        outer = outer or text
    return outer or "autograd"


def _short(name):
    parts = name.split(os.sep)
    place = parts.index("site-packages") + 1 if "site-packages" in parts else len(parts) - 1
    return "/".join(parts[place:])


def rank():
    """Of this process among its equals."""
    return int(os.environ.get("RANK", "0"))


def most_of_device(device):
    """The most that was taken of the device, the context in."""
    import ctypes

    most = ctypes.CDLL(None).fitplan_most
    most.restype = ctypes.c_size_t
    return int(most(device))


def versions():
    """Of the libraries that ran."""
    loaded = ((name, sys.modules[name]) for name in LIBRARIES if name in sys.modules)
    return {name: str(getattr(module, "__version__", "")) for name, module in loaded}


def leave_for_good():
    """The program is asked to end; if something holds it, it is ended."""
    timer = threading.Timer(LINGER_SECONDS, os._exit, (0,))
    timer.daemon = True
    timer.start()


def count_engine_steps(deepspeed):
    """An engine of DeepSpeed may step its optimizer several times for one step of the training."""
    if _watch is None:
        return
    engine = deepspeed.DeepSpeedEngine
    step = engine.step

    def counted(self, *args, **kwargs):
        _watch.engine_steps = _watch.engine_steps or 0
        before = self.global_steps
        if self.is_gradient_accumulation_boundary():
            _watch.mark("optimizer")
        result = step(self, *args, **kwargs)
        if self.global_steps > before:
            _watch.engine_steps += 1
            _watch.step_over()
        return result

    engine.step = counted
