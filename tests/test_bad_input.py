"""Whatever is typed or lies in a config: one sentence on stderr and exit code 2, never a traceback, never a hang."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fitplan.cli.main import main
from fitplan.names import printable

LIMIT_SECONDS = 60

LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 16,
    "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
    "rope_theta": 10000.0, "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 64, "n_embd": 16, "n_layer": 2,
    "n_head": 4, "n_positions": 64, "activation_function": "gelu_new", "n_inner": None, "attn_pdrop": 0.1,
    "embd_pdrop": 0.1, "resid_pdrop": 0.1, "layer_norm_epsilon": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
T5: dict[str, Any] = {
    "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": 64, "d_model": 16, "d_kv": 4,
    "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": True,
    "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "dropout_rate": 0.1,
    "tie_word_embeddings": False,
}  # fmt: skip
TINY = {"llama": LLAMA, "gpt2": GPT2, "t5": T5}
QUICK = ("--method", "lora", "--seq-len", "8")
"""One method and few tokens: what is tested is the answer's form."""


class TooSlow(BaseException):
    """No ``Exception``: nothing between here and the clock may swallow it."""


@contextmanager
def time_limit(seconds: int = LIMIT_SECONDS) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"no answer after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Cli:
    """The command in this process, with what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self._capsys = capsys
        self._folder = folder

    def config(self, content: dict[str, Any] | str | bytes) -> str:
        """A file with this content; the name is the same each time, so that hypothesis sees nothing move."""
        data = json.dumps(content) if isinstance(content, dict) else content
        path = self._folder / "tiny.json"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return str(path)

    def __call__(self, *argv: str) -> tuple[int | str | None, str, str]:
        self._capsys.readouterr()
        code: int | str | None
        with time_limit():
            try:
                code = main(argv)
            except SystemExit as stop:
                code = stop.code
        out, err = self._capsys.readouterr()
        return code, out, err

    def refuses(self, *argv: str) -> str:
        """Check the form of a refusal; the message."""
        return assert_refused(*self(*argv))

    def answers(self, *argv: str) -> None:
        code, out, _ = self(*argv)
        assert code == 0
        assert out

    def answers_or_refuses(self, *argv: str) -> None:
        code, out, err = self(*argv)
        if code == 0:
            assert out
        else:
            assert_refused(code, out, err)


def assert_refused(code: int | str | None, out: str, err: str) -> str:
    assert code == 2, err
    if out:  # with --json the same sentence in a document
        document = json.loads(out)
        assert document["schema"] == "fitplan.error/1"
        assert document["exit_code"] == 2
        assert err.split() == printable(f"fitplan: error: {document['error']}").split()
    assert err.startswith("fitplan: error: ")
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1, err
    assert "Traceback" not in err
    assert len(err) > len("fitplan: error: \n") + 10
    return err


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    return Cli(capsys, tmp_path)


# --- valid configs still work -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("family", TINY)
def test_a_valid_tiny_config_is_answered(cli: Cli, family: str, method: str) -> None:
    cli.answers("check", cli.config(TINY[family]), "--method", method, "--seq-len", "8")


def test_a_valid_tiny_config_is_answered_as_json(cli: Cli) -> None:
    code, out, err = cli("check", cli.config(LLAMA), *QUICK, "--json")
    assert code == 0
    assert err == ""
    assert json.loads(out)["model"]["architecture"] == "LlamaForCausalLM"


@pytest.mark.parametrize(
    "harmless",
    [
        {"something_new": 1},
        {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}},
        {"num_key_value_heads": None},
        {"head_dim": None},
        {"architectures": None},
        {"text_config": None},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"max_position_embeddings": 2**20},
        {"pad_token_id": None},
        {"num_hidden_layers": 100},
    ],
    ids=str,
)
def test_a_harmless_oddity_is_answered(cli: Cli, harmless: dict[str, Any]) -> None:
    cli.answers("check", cli.config(LLAMA | harmless), *QUICK)


def test_a_model_larger_than_the_memory_of_this_machine_is_answered(cli: Cli) -> None:
    """Each projection alone has 128 GiB: nothing of it may be made, not even for a moment."""
    wide = {"hidden_size": 2**17, "intermediate_size": 2**19, "num_attention_heads": 1024, "num_key_value_heads": 1024}
    cli.answers("check", cli.config(LLAMA | wide | {"head_dim": 128}), *QUICK)


# --- files that are no configs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_json", [(), ("--json",)], ids=["table", "json"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" \n",
        b"hello",
        b'{"model_type": "llama"',
        b"[1]",
        b"null",
        b"3",
        b'"llama"',
        b"{}",
        bytes(range(256)),
        b"\0" * 100,
        json.dumps(LLAMA).encode("utf-16"),
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"model_type": "llama", "hidden_size": ' + b"9" * 5000 + b"}",
        b'{"model_type": "llama", "hidden_size": NaN}',
        b'{"model_type": "llama", "hidden_size": Infinity}',
        b'{"model_type": "llama", "hidden_size": 1e400}',
        b'{"model_type": "llama", "model_type": 3}',
    ],
    ids=lambda content: repr(content[:30]),
)
def test_a_file_that_is_no_config(cli: Cli, content: bytes, as_json: tuple[str, ...]) -> None:
    cli.refuses("check", cli.config(content), *as_json)


def test_a_config_of_100_mb_is_not_read(cli: Cli, tmp_path: Path) -> None:
    big = tmp_path / "big.json"
    with big.open("wb") as file:
        file.truncate(100 * 2**20)
    start = time.monotonic()
    assert "larger" in cli.refuses("check", str(big))
    assert time.monotonic() - start < 5


def test_a_deep_config_is_answered_or_refused(cli: Cli) -> None:
    deep: Any = 1
    for _ in range(900):
        deep = {"a": deep}
    cli.answers_or_refuses("check", cli.config(LLAMA | {"extra": deep}), *QUICK)
    cli.refuses("check", cli.config(LLAMA | {"rope_scaling": deep}), *QUICK)


def test_folders_and_odd_files(cli: Cli, tmp_path: Path) -> None:
    empty, named, nested = tmp_path / "empty", tmp_path / "model.json", tmp_path / "nested"
    for folder in (empty, named, nested / "config.json"):
        folder.mkdir(parents=True)
    fifo, loop, dangling = tmp_path / "fifo", tmp_path / "loop", tmp_path / "dangling.json"
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    dangling.symlink_to(tmp_path / "nothing")
    for path in (empty, named, nested, fifo, loop, dangling, tmp_path / "nothing.json", Path("/dev/zero"), Path("/")):
        cli.refuses("check", str(path))


# --- configs that are no models ---------------------------------------------------------------------------------------

WRONG_COUNTS = [-1, 0, 10**12, 2**63, "x", "16", [16], {}, True, 1.5, ""]


def _dimensions(config: dict[str, Any]) -> list[str]:
    return [
        name
        for name, value in config.items()
        if type(value) is int and not name.endswith(("_id", "_distance", "_buckets"))
    ]


@pytest.mark.parametrize(
    ("family", "field"), [(family, field) for family, config in TINY.items() for field in _dimensions(config)]
)
def test_a_dimension_that_is_none(cli: Cli, family: str, field: str) -> None:
    for wrong in WRONG_COUNTS:
        message = cli.refuses("check", cli.config(TINY[family] | {field: wrong}), *QUICK)
        assert field in message, (wrong, message)


def test_a_billion_layers(cli: Cli) -> None:
    for family, field in (("llama", "num_hidden_layers"), ("gpt2", "n_layer"), ("t5", "num_decoder_layers")):
        assert field in cli.refuses("check", cli.config(TINY[family] | {field: 10**9}))


@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        ("llama", {"num_attention_heads": 3}),
        ("llama", {"num_attention_heads": 3, "head_dim": None}),
        ("llama", {"num_key_value_heads": 8}),
        ("llama", {"num_key_value_heads": 3}),
        ("llama", {"num_key_value_heads": 2**20}),
        ("llama", {"head_dim": 3}),
        ("llama", {"hidden_act": "nope"}),
        ("llama", {"hidden_act": None}),
        ("llama", {"rope_scaling": "x"}),
        ("llama", {"rope_scaling": {"type": "nope", "factor": 2.0}}),
        ("llama", {"rope_scaling": {"rope_type": "llama3"}}),
        ("llama", {"attention_dropout": -1}),
        ("llama", {"attention_dropout": 1.5}),
        ("llama", {"attention_dropout": None}),
        ("llama", {"attention_dropout": "x"}),
        ("llama", {"pad_token_id": 64}),
        ("llama", {"torch_dtype": "nope"}),
        ("llama", {"architectures": 3}),
        ("llama", {"architectures": "x"}),
        ("llama", {"architectures": [1]}),
        ("llama", {"architectures": True}),
        ("llama", {"text_config": "x"}),
        ("llama", {"text_config": 3}),
        ("llama", {"return_dict": False}),
        ("llama", {"to_dict": 1}),
        ("llama", {"id2label": 3}),
        ("llama", {"is_encoder_decoder": True}),
        ("llama", {"tie_word_embeddings": "x"}),
        ("llama", {"model_type": ""}),
        ("llama", {"model_type": None}),
        ("llama", {"model_type": ["llama"]}),
        ("llama", {"model_type": "a\nb"}),
        ("llama", {"model_type": "vit"}),
        ("llama", {"model_type": "whisper"}),
        ("llama", {"model_type": "clip"}),
        ("llama", {"model_type": "qwen2", "layer_types": ["full_attention"]}),
        ("llama", {"model_type": "qwen2", "layer_types": ["x", "y"]}),
        ("gpt2", {"n_head": 3}),
        ("gpt2", {"activation_function": 7}),
        ("gpt2", {"attn_pdrop": -0.1}),
        ("t5", {"num_heads": None}),
        ("t5", {"feed_forward_proj": "x-y-z"}),
        ("t5", {"relative_attention_num_buckets": 0}),
        ("t5", {"relative_attention_max_distance": 0}),
        ("t5", {"decoder_start_token_id": None}),
        ("t5", {"decoder_start_token_id": "x"}),
        ("t5", {"pad_token_id": None}),
    ],
    ids=str,
)
def test_a_contradictory_config(cli: Cli, family: str, wrong: dict[str, Any]) -> None:
    cli.refuses("check", cli.config(TINY[family] | wrong), *QUICK)


def test_a_config_without_a_model_type(cli: Cli) -> None:
    assert "model_type" in cli.refuses("check", cli.config({k: v for k, v in LLAMA.items() if k != "model_type"}))


def test_remote_code_is_not_run(cli: Cli) -> None:
    config = {"model_type": "mystery", "auto_map": {"AutoConfig": "configuration_x.X"}, "hidden_size": 16}
    message = cli.refuses("check", cli.config(config), *QUICK)
    assert "mystery" in message
    assert "its own code" in message


@pytest.mark.parametrize("num_labels", [-3, "x"])
def test_a_classifier_without_classes(cli: Cli, num_labels: Any) -> None:
    task = ("--task", "sequence-classification")
    cli.refuses("check", cli.config(LLAMA | {"num_labels": num_labels}), *QUICK, *task)


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-4, 80)
    | st.sampled_from([10**12, 2**31, -(2**31), 2**63, 10**30])
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
GONE = "<gone>"


@st.composite
def broken_configs(draw: st.DrawFn) -> dict[str, Any]:
    config = dict(draw(st.sampled_from([LLAMA, GPT2, T5])))
    for field in draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=3, unique=True)):
        value = draw(ANY_JSON | st.just(GONE))
        if value == GONE:
            del config[field]
        else:
            config[field] = value
    return config


BOUNDED = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@BOUNDED
@given(config=broken_configs())
@example(config=LLAMA | {"vocab_size": 10**12, "num_key_value_heads": 10**12})
@example(config={name: value for name, value in T5.items() if name != "decoder_start_token_id"})
def test_fuzzed_config(cli: Cli, config: dict[str, Any]) -> None:
    cli.answers_or_refuses("check", cli.config(config), *QUICK)


@BOUNDED
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_fuzzed_file(cli: Cli, content: bytes) -> None:
    cli.refuses("check", cli.config(content), *QUICK)


# --- what is typed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "no-such-model", "lama-7b", "", " ", "a/b/c", "a/", "/a", "~no-such-user/x", "a\nb", "./a\nb", "a/b\nc",
        "a b/c", "a\0b", "./a\0b", "a\x1b[31mb", "\udcff", "./\udcff", "模型", "a" * 5000, "./" + "a" * 5000,
        "https://huggingface.co/owner/name",
    ],
    ids=lambda name: repr(name[:20]),
)  # fmt: skip
def test_an_unknown_model(cli: Cli, name: str) -> None:
    message = cli.refuses("check", name)
    assert "\x1b" not in message
    cli.refuses("check", name, "--json")


def test_a_mistyped_model_gets_a_hint(cli: Cli) -> None:
    assert "did you mean llama-7b" in cli.refuses("check", "lama-7b")


def test_an_empty_name_is_not_the_current_folder(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a shell makes of an unset variable."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    monkeypatch.chdir(tmp_path)
    cli.refuses("check", "", *QUICK)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy on a port where nothing listens, so that the test says the same with and without a network."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def test_an_unreachable_hub_is_said_soon(no_hub: None) -> None:
    """As a process of its own: the hub's client keeps its connections, and its own remarks go to the real stderr."""
    start = time.monotonic()
    for flags in ((), ("--json",)):
        done = subprocess.run(
            [sys.executable, "-m", "fitplan", "check", "no-such-owner/no-such-model", *flags],
            capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False,
        )  # fmt: skip
        message = assert_refused(done.returncode, done.stdout, done.stderr)
        assert "could not be reached" in message
        assert "no-such-owner/no-such-model" in message
    assert time.monotonic() - start < 30


def test_the_command_itself_prints_one_line(tmp_path: Path) -> None:
    script = shutil.which("fitplan", path=str(Path(sys.executable).parent)) or ""
    command = [script] if script else [sys.executable, "-m", "fitplan"]
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(LLAMA | {"num_key_value_heads": 3}))
    for argv in (["check", str(config), *QUICK], ["check", "a\nb"], ["check", "llama-7b", "--bogus"]):
        done = subprocess.run([*command, *argv], capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
        assert_refused(done.returncode, done.stdout, done.stderr)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_complaint_that_cannot_be_written_changes_no_exit_code() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "fitplan", "check", "llama-8b", "--gpu", "h1000"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, timeout=LIMIT_SECONDS, check=False)
    assert (done.returncode, done.stdout) == (2, b"")


def test_a_defect_is_no_verdict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*_: object, **__: object) -> None:
        raise AssertionError("so it is not")

    monkeypatch.setattr("fitplan.api.check", fails)
    assert main(["check", "llama-8b"]) == 70
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "so it is not" in printed.err
    assert "defect of fitplan" in printed.err.splitlines()[-1]


def test_a_model_that_no_address_reaches_is_answered(cli: Cli) -> None:
    huge = LLAMA | {"hidden_size": 2**24, "intermediate_size": 2**31 - 1, "head_dim": 128}
    code, out, _ = cli("check", cli.config(huge), *QUICK, "--vram", "8GiB")
    assert code == 1
    assert "does not fit" in out


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_a_model_that_takes_gigabytes_to_build_is_refused(cli: Cli) -> None:
    """The frequencies of its positions are real numbers: 2**30 of them."""
    error = cli.refuses("check", cli.config(LLAMA | {"head_dim": 2**31 - 64}), *QUICK)
    assert "takes more than 2 GiB of this machine's memory; check the sizes in its config" in error


def test_an_output_that_cannot_show_every_character(tmp_path: Path) -> None:
    """The pipe of an old locale, and of Windows: bars and names may be lost, the answer and its exit code not."""
    config = tmp_path / "模型.json"
    config.write_text(json.dumps(LLAMA))
    done = subprocess.run(
        [sys.executable, "-m", "fitplan", "check", str(config), *QUICK],
        capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "LoRA" in done.stdout


@pytest.mark.parametrize("gpu", ["h1000", "", " ", "a\nb", "RTX 9999", "-", "cuda:0", "4090ti"])
def test_an_unknown_gpu(cli: Cli, gpu: str) -> None:
    cli.refuses("check", "llama-7b", f"--gpu={gpu}")


@pytest.mark.parametrize(
    "size",
    [
        "abc", "", "0", "-5", "-5GiB", "24XB", "1e3", "nan", "inf", "1.5.2", "0.0000001", "24GiB GiB", "GiB",
        "9" * 400, "9" * 400 + "GiB", "9999999999TiB",
    ],
)  # fmt: skip
def test_a_bad_memory_size(cli: Cli, size: str) -> None:
    assert "memory size" in cli.refuses("check", "llama-7b", f"--vram={size}")


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("chek",),
        ("check",),
        ("--json",),
        ("--bogus",),
        ("check", "--json"),
        ("check", "llama-7b", "mistral-7b"),
        ("check", "llama-7b", "--gpu"),
        ("check", "llama-7b", "--gpu", "h100", "--vram", "24GiB"),
        ("check", "llama-7b", "--batchsize", "1"),
        ("check", "llama-7b", "--batch-siz", "1"),
        ("check", "llama-7b", "--batch_size", "1"),
        ("check", "llama-7b", "--lora-rank", "8"),
        ("check", "llama-7b", "-x"),
        ("check", "llama-7b", "--method"),
    ],
    ids=" ".join,
)
def test_mistyped_flags(cli: Cli, argv: tuple[str, ...]) -> None:
    cli.refuses(*argv)


@pytest.mark.parametrize("as_json", [(), ("--json",)], ids=["table", "json"])
@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *[
            (flag, value)
            for flag in ("--batch-size", "--seq-len", "--gradient-accumulation-steps", "--lora-r", "--lora-alpha")
            for value in ("0", "-1", "x", "1.5", "", "1000000000000", "9" * 5000)
        ],
        *[("--lora-dropout", value) for value in ("1", "-0.1", "nan", "inf", "x", "")],
        ("--num-labels", "0"),
        ("--num-labels", "2"),
        ("--method", "sft"),
        ("--task", "x"),
        ("--task", "masked-lm"),
        ("--task", "seq2seq-lm"),
        ("--quant", "nf3"),
        ("--dtype", "int8"),
        ("--compute-dtype", "int8"),
        ("--optim", "adam"),
        ("--attn", "fa3"),
        ("--padding", "left"),
        ("--mixed-precision", "bf8"),
        *[("--target-modules", value) for value in ("", ",", "nope", "*", "[", "norm", "layers", "a\nb")],
    ],
    ids=lambda part: part[:20],
)
def test_a_bad_value(cli: Cli, flag: str, value: str, as_json: tuple[str, ...]) -> None:
    method = () if flag == "--method" else QUICK[:2]
    cli.refuses("check", cli.config(LLAMA), *method, f"{flag}={value}", *as_json)


def test_a_batch_larger_than_any_memory(cli: Cli) -> None:
    cli.refuses("check", cli.config(LLAMA), "--batch-size", "1048576", "--seq-len", "16777216")


@pytest.mark.parametrize(
    ("model", "positions"),
    [("gpt2", 1024), ("bert-base", 512), ("roberta-base", 512), ("opt-6.7b", 2048), ("gptj", 2048)],
)
def test_a_sequence_longer_than_the_table_of_positions(cli: Cli, model: str, positions: int) -> None:
    """The real step stops with a failed assertion; the answer must not be about a job that cannot run."""
    message = cli.refuses("check", model, "--method", "lora", "--seq-len", str(positions + 1))
    assert str(positions) in message
    cli.answers("check", model, "--method", "lora", "--seq-len", str(positions))


FULL, LORA, QLORA = (("--method", method) for method in ("full", "lora", "qlora"))


@pytest.mark.parametrize("as_json", [(), ("--json",)], ids=["table", "json"])
@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ((*FULL, "--lora-r", "8"), "lora_r"),
        ((*FULL, "--lora-alpha", "8"), "lora_alpha"),
        ((*FULL, "--lora-dropout", "0.1"), "lora_dropout"),
        ((*FULL, "--target-modules", "q_proj"), "target_modules"),
        *[
            ((*method, *flags), named)
            for method in (FULL, LORA)
            for flags, named in (
                (("--quant", "nf4"), "quant"),
                (("--double-quant",), "double_quant"),
                (("--no-double-quant",), "double_quant"),
                (("--compute-dtype", "bf16"), "compute_dtype"),
                (("--kbit-prepare",), "kbit_prepare"),
                (("--no-kbit-prepare",), "kbit_prepare"),
            )
        ],
        ((*QLORA, "--quant", "int8", "--double-quant"), "double_quant"),
        ((*QLORA, "--quant", "int8", "--compute-dtype", "fp16"), "compute_dtype"),
        ((*FULL, "--dtype", "float16", "--mixed-precision", "fp16"), "mixed_precision"),
        (("--attn", "flash_attention_2", "--dtype", "float32", "--mixed-precision", "no"), "flash_attention_2"),
        (("--attn", "flash_attention_2", "--gpu", "t4"), "compute capability 8.0"),
        ((*LORA, "--target-modules", "q_proj,v_porj"), "did you mean v_proj"),
        ((*LORA, "--target-modules", "q_proj,vproj"), "did you mean v_proj"),
        (("--num-labels", "2", "--task", "causal-lm"), "num_labels"),
        (("--num-labels", "2", "--task", "masked-lm"), "num_labels"),
    ],
    ids=str,
)
def test_contradicting_settings(cli: Cli, argv: tuple[str, ...], named: str, as_json: tuple[str, ...]) -> None:
    assert named in cli.refuses("check", cli.config(LLAMA), *argv, *as_json)


def test_a_list_of_modules_for_several_families(cli: Cli) -> None:
    """As peft, which takes what is there."""
    cli.answers("check", cli.config(LLAMA), *LORA, "--target-modules", "q_proj,v_proj,c_attn,c_proj,query_key_value")


@pytest.mark.parametrize("first", ["fitplan.Plan", "fitplan.check", "fitplan.estimate", "fitplan.MemoryMoment"])
def test_the_functions_of_the_api_are_not_hidden_by_the_modules_of_their_names(first: str) -> None:
    code = f"import fitplan; {first}; assert callable(fitplan.check) and callable(fitplan.estimate)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_setting_of_the_api() -> None:
    import fitplan

    with pytest.raises(fitplan.InputError, match="did you mean batch_size"):
        fitplan.check("llama-7b", batch_sizes=2)
    with pytest.raises(fitplan.InputError):
        fitplan.check(7)
    with pytest.raises(fitplan.InputError):
        fitplan.check("llama-7b", gpu="h100", vram="24GiB")


@BOUNDED
@given(argv=st.lists(st.text(max_size=8).filter(lambda text: text not in ("-h", "--help", "--version")), max_size=4))
@example(argv=["check", "%s"])
@example(argv=["check", "llama-7b", "--gpu", "%(prog)s"])
def test_fuzzed_arguments(cli: Cli, argv: list[str]) -> None:
    cli.refuses(*argv)


@BOUNDED
@given(size=st.text(alphabet="0123456789.eE+-kmgtiB ", max_size=12))
def test_fuzzed_memory_size(cli: Cli, size: str) -> None:
    code, out, err = cli("check", "no-such-model", f"--vram={size}")
    assert_refused(code, out, err)
