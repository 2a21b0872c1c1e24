"""JSON Schemas of the documents that fitplan prints: ``python docs/schemas.py`` writes them.

They are found in what it prints, setups in the list of settings.

What stands in all samples of a kind is required; keys are added to a document, never renamed, so more may come.
"""

import contextlib
import io
import json
import pickle
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fitplan.cli.main import main
from fitplan.errors import MissingDependency
from fitplan.settings import ByName, Numbers, Setting, Version
from fitplan.setup import SETTINGS

FOLDER = Path(__file__).with_name("schemas")
MEASURED = Path(__file__).parents[1] / "profiles" / "measured"
FILE = "base_model: llama-3.2-1b\nsequence_len: 512\nadapter: lora\nlora_r: 8\nval_set_size: 0.1\nadapter_x: 1\n"
QUESTIONS = (
    "check llama-8b --gpu 4090 --json",
    "check llama-8b --method lora --json",
    "check llama-70b --gpu t4 --method full --json",
    "check llama-3.2-1b --vram 24GiB --stack trl --json",
    "check flan-t5-small --gpu h100 --json",
    "check roberta-base --gpu 4090 --method full --task masked-lm --json",
    "check llama-8b --gpu 4090 --method qlora --target-modules q_proj,v_proj --json",
    "check gpt2 --gpu a100 --method qlora --optim paged_adamw_8bit --json",
    "check falcon-7b --gpu a100 --json",
    "check FILE --gpu 4090 --json",
    "check llama-8b --gpu 4090 --method qlora --emit json",
    "check gpt2 --method full --emit json",
    "advise llama-8b --gpu 4090 --method lora --seq-len 8192 --json",
    "advise llama-70b --gpu 4090 --method full --json",
    "advise gpt2 --vram 80GiB --json",
    "explain llama-8b --method qlora --json",
    "explain gpt2 --method full --gpu t4 --json",
    "map llama-8b --gpu 4090 --json",
    "map llama-70b --gpu 4090 --method full --json",
    "diff llama-8b --method qlora --gpu 4090 --json -- --use-liger-kernel",
    "diff llama-8b --method lora --json -- --no-gradient-checkpointing",
    "autopsy LOG --json",
    "autopsy LOG --model llama-8b --method qlora --gpu 4090 --json",
    "autopsy SMI --json",
    "autopsy SNAPSHOT --json",
    "fits llama-3 --gpu 4090 --json",
    "fits falcon-7b --gpu 4090 --gpu 2xH100 --json",
    "gpus --json",
    "models --json",
    "check nosuchmodel --json",
)
"""What is asked; ``FILE`` is a training file, the others say why a run ended."""
IN_DOUBT = "check llama-8b --gpu 4090 --method qlora --batch-size 3 --json"
"""Asked without torch: only a trace would decide it."""


def documents() -> Iterator[dict[str, Any]]:
    """Samples of every kind that needs no GPU and no trace."""
    with tempfile.TemporaryDirectory() as folder:
        files = _files(Path(folder))
        for question in QUESTIONS:
            yield printed(" ".join(str(files.get(word, word)) for word in question.split()))
    with no_torch():
        yield printed(IN_DOUBT)
    for records in sorted(MEASURED.glob("*.jsonl")):
        yield from map(json.loads, records.read_text(encoding="utf-8").splitlines())
    yield from json.loads((MEASURED / "calibrations.json").read_text(encoding="utf-8"))


def _files(folder: Path) -> dict[str, Path]:
    """What questions name, written."""
    frames = [{"filename": "train.py", "line": 1, "name": "forward"}]
    blocks = [{"size": 2**21, "state": "active_allocated", "frames": frames}, {"size": 2**21, "state": "inactive"}]
    oom = {"action": "oom", "size": 2**22, "device_free": 0}
    snapshot = {"segments": [{"device": 0, "total_size": 2**22, "blocks": blocks}], "device_traces": [[oom]]}
    files = {
        "FILE": ("train.yaml", FILE.encode()),
        "LOG": (
            "train.log",
            b"CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has a total capacity of 23.65 GiB of which 0.1 GiB "
            b"is free. Process 7 has 1.00 GiB memory in use. Including non-PyTorch memory, this process has 20.81 GiB "
            b"memory in use. Of the allocated memory 20.09 GiB is allocated by PyTorch, and 0.10 GiB is reserved by "
            b"PyTorch but unallocated.",
        ),
        "SMI": ("smi.txt", b"  73001MiB / 81920MiB\n|    0   N/A  N/A      1234      C   python3     72000MiB |\n"),
        "SNAPSHOT": ("snapshot.pickle", pickle.dumps(snapshot)),
    }
    for name, content in files.values():
        folder.joinpath(name).write_bytes(content)
    return {word: folder / name for word, (name, _) in files.items()}


@contextlib.contextmanager
def no_torch() -> Iterator[None]:
    """Where nothing can be traced, and nothing was."""
    absent = MissingDependency("tracing a model needs torch, which is not installed; pip install 'fitplan[torch]'")
    with patch("fitplan.estimator.made", side_effect=absent), patch("fitplan.estimator.find_cached", lambda *_: None):
        yield


def printed(question: str) -> dict[str, Any]:
    """The document that a command prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        main(question.split())
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def schemas() -> dict[str, dict[str, Any]]:
    """By kind of document: ``fitplan.check/1``."""
    from genson import SchemaBuilder

    builders: dict[str, Any] = {}
    for document in documents():
        builders.setdefault(document["schema"], SchemaBuilder("https://json-schema.org/draft/2020-12/schema"))
        builders[document["schema"]].add_object(document)
    found = {}
    for kind, builder in sorted(builders.items()):
        schema = {"title": kind, **_with_setups(builder.to_schema())}
        schema["properties"]["schema"] = {"const": kind}
        found[kind] = schema | ({"$defs": {"setup": setup_schema()}} if _SETUP["$ref"] in json.dumps(schema) else {})
    return found


_SETUP = {"$ref": "#/$defs/setup"}


def _with_setups(schema: Any) -> Any:
    """A setup is described by the list of settings, not by the samples."""
    if isinstance(schema, list):
        return [_with_setups(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _with_setups(value) for name, value in schema.items()}
    properties = found.get("properties", {})
    for name in ("setup", "changes"):
        if properties.get(name, {}).get("type") == "object":
            properties[name] = _SETUP
    return found


def setup_schema() -> dict[str, Any]:
    """Every setting, resolved; a record of an older version lacks those that it did not know."""
    return {
        "type": "object",
        "properties": {one.name: {"description": one.help, **_values(one)} for one in SETTINGS.values()},
        "additionalProperties": False,
    }


def _values(one: Setting) -> dict[str, Any]:
    least, most = one.span or (None, None)
    bounds = {name: value for name, value in (("minimum", least), ("maximum", most)) if value is not None}
    if one.is_enum:
        return {"enum": [*map(str, one.kind), None]}
    plain = {bool: "boolean", int: "integer", float: "number", Version: "string"}
    if one.kind in plain:
        return {"type": [plain[one.kind], "null"], **bounds}
    if one.kind is Numbers:
        return {"type": ["array", "null"], "items": {"type": "integer", **bounds}}
    if one.kind is ByName:
        return {"type": ["object", "null"], "additionalProperties": {"type": "integer", **bounds}}
    return {"type": ["array", "string", "null"], "items": {"type": "string"}}


def file_of(kind: str) -> Path:
    """``fitplan.check/1`` is in ``check-1.json``."""
    return FOLDER / f"{kind.removeprefix('fitplan.').replace('/', '-')}.json"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for kind, schema in schemas().items():
        file_of(kind).write_text(json.dumps(schema, indent=1) + "\n", encoding="utf-8")
        print(kind, file=sys.stderr)
