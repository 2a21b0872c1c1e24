"""The tools for language models: what they say is what the library says, with its basis; nonsense is one sentence."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

import fitplan

mcp = pytest.importorskip("mcp")

from fitplan.server import make_server  # noqa: E402


def _call(tool: str, arguments: dict[str, Any]) -> Any:
    async def run() -> Any:
        async with mcp.Client(make_server()) as client:
            return await client.call_tool(tool, arguments)

    return asyncio.run(run())


def test_the_tools_are_named_and_described() -> None:
    async def run() -> Any:
        async with mcp.Client(make_server()) as client:
            return await client.list_tools()

    tools = {tool.name: tool for tool in asyncio.run(run()).tools}
    assert set(tools) == {"check", "advise", "fits", "diff", "autopsy"}
    assert all(tool.description for tool in tools.values())
    assert set(tools["check"].input_schema["properties"]) == {"model", "gpu", "vram", "method", "settings"}


def test_check_says_what_the_library_says() -> None:
    asked = {"model": "llama-8b", "gpu": "4090", "method": "qlora", "settings": {"seq_len": 4096}}
    found = _call("check", asked).structured_content
    (plan,) = fitplan.check("llama-8b", gpu="4090", method="qlora", seq_len=4096).plans
    (told,) = found["answers"]
    assert told["device_bytes"] == plan.memory.bytes
    assert told["memory_to_ask_for_bytes"] == plan.memory.bytes + plan.memory.spread_bytes
    assert (told["verdict"], told["settings"]["seq_len"]) == (plan.verdict and plan.verdict.fit, 4096)
    assert told["basis"].startswith("predicted, not measured: a shipped formula")
    assert sum(told["breakdown"].values()) == plan.estimate.peak_allocated_bytes


def test_the_others_answer(tmp_path: Path) -> None:
    advice = _call("advise", {"model": "llama-70b", "gpu": "h100"}).structured_content
    assert advice["room_for"] == fitplan.advise("llama-70b", gpu="h100", method="qlora").advice.largest
    fits = _call("fits", {"gpu": "4090", "models": ["llama-3"]}).structured_content
    assert {one["model"] for one in fits["answers"]} >= {"llama-3.1-8b", "llama-3.2-1b"}
    assert "llama-3.1-70b" not in {one["model"] for one in fits["answers"]}
    changes = _call("diff", {"model": "llama-8b", "gpu": "4090", "changes": {"seq_len": 4096}}).structured_content
    assert changes["device"]["after"] > changes["device"]["before"]
    (tmp_path / "x.log").write_text("RuntimeError: CUDA error: out of memory")
    assert _call("autopsy", {"file": str(tmp_path / "x.log")}).structured_content["cause"] == "driver"


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("check", {"model": "nosuch"}, "nosuch"),
        ("check", {"model": "llama-8b", "gpu": "nosuch"}, "nosuch"),
        ("check", {"model": "llama-8b", "settings": {"seq_length": 1}}, "seq_length"),
        ("fits", {"gpu": "4090", "models": ["nosuch"]}, "nosuch"),
        ("autopsy", {"file": "none.log"}, "is no file"),
    ],
)
def test_nonsense_is_told_in_a_sentence(tool: str, arguments: dict[str, Any], words: str) -> None:
    found = _call(tool, arguments)
    assert found.is_error
    assert words in found.content[0].text
    assert "Traceback" not in found.content[0].text
