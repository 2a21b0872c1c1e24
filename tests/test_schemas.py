"""The documents that fitplan prints are as their published schemas say; other programs read them."""

import json
from types import ModuleType
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError
from scripts import loaded


@pytest.fixture(scope="module")
def published() -> ModuleType:
    return loaded("docs/schemas.py")


def _validator(kind: str, published: ModuleType) -> Draft202012Validator:
    schema = json.loads(published.file_of(kind).read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


ASKED = (
    "check qwen3-8b --gpu h200 --json",
    "check mistral-7b-v0.3 --vram 12GiB --method qlora --batch-size 8 --json",
    "check tinyllama-1.1b --method full --json",
    "check llama-3.1-8b --gpu a100 --stack trl --method lora --dtype bfloat16 --json",
    "check t5-base --gpu t4 --method lora --json",
    "advise qwen2.5-7b --gpu t4 --method lora --json",
    "advise llama-2-7b --gpu b200 --json",
    "explain phi-4 --method lora --json",
    "map gemma-2-9b --gpu a100 --method lora --json",
    "check qwen2.5-0.5b --gpu 4090 --method lora --emit json",
    "fits mistral --gpu h100 --method lora --json",
    "gpus --json",
    "models qwen3 --json",
)
"""None of which the schemas were found in."""


@pytest.mark.parametrize("question", ASKED)
def test_an_answer_is_as_its_schema_says(question: str, published: ModuleType) -> None:
    document = published.printed(question)
    _validator(document["schema"], published).validate(document)


def test_every_document_has_a_schema(published: ModuleType) -> None:
    kinds = {document["schema"] for document in published.documents()}
    assert {published.file_of(kind).name for kind in kinds} == {path.name for path in published.FOLDER.glob("*.json")}
    for document in published.documents():
        _validator(document["schema"], published).validate(document)


def _without(document: dict[str, Any], *path: str) -> dict[str, Any]:
    changed = json.loads(json.dumps(document))
    inside = changed
    for name in path[:-1]:
        inside = inside[name] if isinstance(inside, dict) else inside[0][name]
    del (inside if isinstance(inside, dict) else inside[0])[path[-1]]
    return dict(changed)


@pytest.mark.parametrize(
    "path", [("plans",), ("model", "name"), ("plans", "estimate"), ("plans", "setup"), ("provenance",)]
)
def test_a_key_that_goes_is_seen(path: tuple[str, ...], published: ModuleType) -> None:
    document = published.printed("check gpt2 --gpu h100 --method lora --json")
    changed = _without(document, *path)
    with pytest.raises(ValidationError):
        _validator("fitplan.check/1", published).validate(changed)


def test_a_size_that_is_no_whole_number_is_seen(published: ModuleType) -> None:
    document = published.printed("check gpt2 --gpu h100 --method lora --json")
    document["plans"][0]["estimate"]["peak_allocated_bytes"] = "1 GiB"
    with pytest.raises(ValidationError):
        _validator("fitplan.check/1", published).validate(document)
