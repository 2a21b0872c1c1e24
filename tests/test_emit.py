"""Emitted scripts are run, and what they run is what was estimated."""

import ast
import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from emitted_runs import SCALARS, describe, finish, start
from families import FAMILIES
from real_runs import CPU, batch_bytes, our_run

import fitplan
from fitplan import emit
from fitplan.cli.main import main
from fitplan.configs.resolve import resolve_model
from fitplan.errors import InputError
from fitplan.plan import CheckReport
from fitplan.setup import MixedPrecision, Padding, TrainingSetup
from fitplan.step import architecture, model, run
from fitplan.step.architecture import load_config, model_class, task_of
from fitplan.step.batch import make_batch

SHAPE = {"batch_size": 2, "seq_len": 16}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "qlora": ("llama", {"method": "qlora"}),
    "qlora-plain": (
        "llama",
        {
            "method": "qlora",
            "kbit_prepare": False,
            "quant": "fp4",
            "double_quant": False,
            "gradient_accumulation_steps": 2,
            "gradient_checkpointing": False,
            "optim": "paged_adamw_8bit",
            "lora_dropout": 0.1,
        },
    ),
    "qlora-int8": ("llama", {"method": "qlora", "quant": "int8"}),
    "full-fp32": ("llama", {"method": "full", "dtype": "float32", "optim": "adamw_8bit", "attn": "eager"}),
    "full-padded": (
        "llama",
        {"method": "full", "mixed_precision": "no", "padding": "max_length", "optim": "adafactor"},
    ),
    "lora-fp16": ("llama", {"method": "lora", "dtype": "float16"}),
    "lora-gpt2": (
        "gpt2",
        {"method": "lora", "lora_r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_proj"], "padding": "longest"},
    ),
    "lora-t5": ("t5", {"method": "lora"}),
    "full-roberta": ("roberta", {"method": "full"}),
    "masked-padded": ("roberta", {"method": "lora", "padding": "max_length"}),
    "ia3": ("llama", {"method": "lora", "adapter": "ia3"}),
    "prompt": ("llama", {"method": "qlora", "adapter": "prompt", "num_virtual_tokens": 4}),
    "bitfit": ("gpt2", {"method": "lora", "adapter": "bitfit"}),
    "classifier": ("roberta", {"method": "lora", "task": "sequence-classification", "num_labels": 3}),
    "multimodal": ("gemma3", {"method": "lora"}),
}
"""Family and settings of the scripts that are run; those of GPT-2 learn from a file."""

UNEQUAL_TEXTS = ["the " * 15, "the " * 14]
"""A batch as the step has it with ``padding`` longest: a full row, and one that is a token shorter."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models are that the scripts train."""
    return tmp_path_factory.mktemp("models")


def _saved(models: Path, family: str) -> Path:
    """A folder with random weights, and a tokenizer of ten words."""
    folder = models / family
    if not folder.exists():
        config = load_config(FAMILIES[family])
        torch.manual_seed(0)
        plain = model_class(config, task_of(config, TrainingSetup()))
        weights = _multimodal(FAMILIES[family]) if family == "gemma3" else plain(config)
        weights.save_pretrained(folder)
        _tokenizer().save_pretrained(folder)
    return folder


def _multimodal(settings: dict[str, Any]) -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vision = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=settings, vision_config=vision))


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
    words = [*special.values(), "The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "."]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _report(models: Path, variant: str) -> CheckReport:
    family, settings = VARIANTS[variant]
    return fitplan.check(_saved(models, family), **SHAPE | settings)


def _written(text: str, folder: Path) -> Path:
    script = folder / "train.py"
    script.write_text(text, encoding="utf-8")
    return script


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_runs_is_what_was_estimated(variant: str, models: Path, tmp_path: Path) -> None:
    """Parameters, adapters, quantisation, checkpoints, batches and the peak are those of the step, byte for byte."""
    report = _report(models, variant)
    setup = report.plans[0].setup
    script = _written(emit.emit_script(report), tmp_path)
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"text": text}) for text in UNEQUAL_TEXTS), encoding="utf-8")
    process = start(script, *([str(data)] if setup.padding is Padding.LONGEST else []), "--max-steps", "2")
    settings = dict(report.model.settings)
    real = our_run(settings, setup)
    step = _step_model(settings, setup)
    found = finish(process, script)

    assert found["steps"] == 2
    assert found["model"] == step
    arguments = found["arguments"]
    assert arguments["bf16"] == (setup.mixed_precision is MixedPrecision.BF16)
    assert arguments["fp16"] == (setup.mixed_precision is MixedPrecision.FP16)
    assert arguments["max_grad_norm"] == run.MAX_GRAD_NORM
    for ours, theirs in _SAME_NAMES.items():
        assert arguments[theirs] == getattr(setup, ours)
    config = load_config(settings)
    batch = make_batch(config, task_of(config, setup), setup, "cpu")
    assert found["batch"] == {name: list(tensor.shape) for name, tensor in batch.items()}
    assert found["padded"] == bool((batch["attention_mask"] == 0).any())
    if setup.mixed_precision is not MixedPrecision.FP16:  # which accelerate leaves out on a CPU
        ahead = batch_bytes(settings, setup)  # the data loader has fetched the next batch: here the host is the device
        assert min(abs(found["peak"] - real.peak), abs(found["peak"] - real.peak - ahead)) <= SCALARS
    assert any((tmp_path / found["arguments"]["output_dir"]).glob("*model.safetensors"))


_SAME_NAMES = {
    "optim": "optim",
    "batch_size": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_checkpointing": "gradient_checkpointing",
}


def _step_model(settings: dict[str, Any], setup: TrainingSetup) -> dict[str, Any]:
    """The model as the step trains it."""
    config = load_config(settings)
    skeleton = model.build_skeleton(config, setup, CPU)
    return describe(model.load_model(skeleton, config, setup, CPU, lambda *_: None))


def test_the_script_stands_alone_and_learns_from_a_file(models: Path, tmp_path: Path) -> None:
    """As a person runs it: ``python train.py data.jsonl``, in an interpreter that sees no fitplan beside it."""
    script = _written(emit.emit_script(_report(models, "qlora")), tmp_path)
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "The quick brown fox jumps over the lazy dog."}\n' * 30, encoding="utf-8")
    command = [sys.executable, "-I", str(script), str(data), "--max-steps", "2", "--output-dir", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no CUDA GPU, nothing was measured; predicted: 0.0" in done.stdout
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("task", ["causal-lm", "sequence-classification"])
def test_the_weights_of_a_language_model_come_out_of_a_multimodal_checkpoint(
    task: str, models: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    report = fitplan.check(_saved(models, "gemma3"), **SHAPE, method="lora", task=task)
    script = runpy.run_path(str(_written(emit.emit_script(report), tmp_path)))
    published = load_file(models / "gemma3" / "model.safetensors")
    loaded = script["load_model"](str(models / "gemma3")).get_base_model().state_dict()
    weights = {name.replace(".base_layer", ""): value for name, value in loaded.items() if "lora" not in name}
    language = {name: value for name, value in published.items() if "language_model" in name}
    assert len(language) > 20
    for name, value in language.items():
        ours = weights["model." + name.partition("language_model.")[2].removeprefix("model.")]
        assert torch.equal(ours, value.to(ours.dtype)), name


@pytest.mark.parametrize(
    ("variant", "text", "rows"),
    [
        ("qlora", "The quick\nbrown fox\n\n" + "the lazy dog . " * 9, 2),
        ("full-padded", "The quick\nbrown fox\n\n\nthe lazy dog", 2),
        ("full-roberta", "The quick brown fox " * 9, 2),
    ],
)
def test_plain_text_is_data(variant: str, text: str, rows: int, models: Path, tmp_path: Path) -> None:
    script = runpy.run_path(str(_written(emit.emit_script(_report(models, variant)), tmp_path)))
    file = tmp_path / "data.txt"
    file.write_text(text, encoding="utf-8")
    made = script["make_rows"](script["read_examples"](file), _tokenizer())
    assert len(made) == rows
    assert all(len(row["input_ids"]) <= 16 for row in made)


@pytest.mark.parametrize(("variant", "lengths"), [("qlora", {16}), ("lora-gpt2", {11, 16}), ("full-padded", {11})])
def test_made_up_text_is_padded_where_the_setup_says_so(
    variant: str, lengths: set[int], models: Path, tmp_path: Path
) -> None:
    script = runpy.run_path(str(_written(emit.emit_script(_report(models, variant)), tmp_path)))
    rows = script["make_rows"](script["made_up_examples"](), _tokenizer())
    assert {len(row["input_ids"]) for row in rows} == lengths
    assert len(rows) >= 6  # three steps of two rows


def test_joined_texts_end_where_they_end(models: Path, tmp_path: Path) -> None:
    script = runpy.run_path(str(_written(emit.emit_script(_report(models, "qlora")), tmp_path)))
    tokenizer = _tokenizer()
    made = script["make_rows"]([{"text": "The quick brown fox"}, {"text": "the lazy dog"}] * 2, tokenizer)
    assert tokenizer.decode(made[0]["input_ids"]) == (
        "The quick brown fox </s> the lazy dog </s> The quick brown fox </s> the lazy"
    )
    assert made[0]["labels"] == made[0]["input_ids"]


def test_too_little_data_is_said(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = runpy.run_path(str(_written(emit.emit_script(_report(models, "qlora")), tmp_path)))
    for content in ("", "too short"):
        (tmp_path / "data.txt").write_text(content, encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path / "data.txt")])
        with pytest.raises(SystemExit) as stopped:
            script["main"]()
        assert stopped.value.code == 2
        assert "data.txt does not fill one row" in capsys.readouterr().err


def test_every_script_is_in_order(models: Path, tmp_path: Path) -> None:
    """Formatted, free of lint by this project's own rules, and without fitplan."""
    for variant in VARIANTS:
        text = emit.emit_script(_report(models, variant))
        (tmp_path / f"{variant.replace('-', '_')}.py").write_text(text, encoding="utf-8")
        imported = {name for node in ast.walk(ast.parse(text)) for name in _imported(node)}
        assert imported <= {"argparse", "json", "pathlib", "typing", "torch", "peft", "transformers"}
    ruff = [sys.executable, "-m", "ruff"]
    config = ["--config", str(Path(__file__).parent.parent / "pyproject.toml"), "--no-cache", str(tmp_path)]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([*ruff, *command, *config], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [str(node.module)] if isinstance(node, ast.ImportFrom) else []


def test_the_script_follows_the_transformers_that_was_estimated() -> None:
    """Before transformers 5 the step's checkpoints were reentrant, and a type was called ``torch_dtype``."""
    report = fitplan.check("llama-3.2-1b", method="lora")
    (plan,) = report.plans
    older = replace(report, plans=(replace(plan, versions=plan.versions | {"transformers": "4.48.1"}),))
    for text, reentrant, name in (
        (emit.emit_script(report), False, "dtype"),
        (emit.emit_script(older), True, "torch_dtype"),
    ):
        assert f'{{"use_reentrant": {reentrant}}}' in text
        assert f"        {name}=torch.bfloat16" in text
        assert ("model.enable_input_require_grads()" in text) == reentrant


def test_names_are_those_of_the_step() -> None:
    assert {task: cls.__name__ for task, cls in architecture._AUTO_CLASSES.items()} == emit.AUTO_CLASSES
    assert emit.peft_arguments is model.peft_arguments
    assert run.MAX_GRAD_NORM == emit.MAX_GRAD_NORM


def test_the_model_is_where_its_weights_are() -> None:
    report = fitplan.check("meta-llama/llama-3.1-8b-instruct", method="lora")
    assert _constant(emit.emit_script(report), "MODEL") == "meta-llama/Llama-3.1-8B-Instruct"
    assert resolve_model("llama-70b").pretrained == "meta-llama/Llama-3.1-70B"
    unpublished = replace(report, model=resolve_model("gpt3-175b"))
    assert unpublished.model.pretrained is None
    assert _constant(emit.emit_script(unpublished), "MODEL") == "./gpt3-175b"


def test_a_folder_and_a_config_say_where_the_weights_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES["llama"]), encoding="utf-8")
    (tmp_path / "other.json").write_text(json.dumps(FAMILIES["llama"]), encoding="utf-8")
    assert resolve_model(tmp_path).pretrained == str(tmp_path)
    assert resolve_model(tmp_path / "config.json").pretrained == str(tmp_path)
    assert resolve_model(tmp_path / "other.json").pretrained is None
    assert resolve_model(load_config(FAMILIES["llama"])).pretrained is None


@pytest.mark.parametrize(
    "name",
    ['"""\nimport os  # ', "it's", 'a "quoted" name', "back\\slash", "$body {x} %(prog)s", "\udc80 \u2028 \N{SNOWMAN}"],
)
def test_no_name_can_become_code(name: str) -> None:
    report = fitplan.check("llama-3.2-1b", method="lora", gpu="4090")
    assert report.gpu is not None
    odd = replace(report.model, name=name, pretrained=name)
    (plan,) = report.plans
    setup = plan.setup.with_(target_modules=(name, "q_proj"))
    text = emit.emit_script(
        replace(report, model=odd, gpu=replace(report.gpu, name=name), plans=(replace(plan, setup=setup),))
    )
    assert _constant(text, "MODEL") == name
    statements, expected = (
        [type(node) for node in ast.walk(ast.parse(one)) if isinstance(node, ast.stmt)]
        for one in (text, emit.emit_script(report))
    )
    assert statements == expected


def _constant(text: str, name: str) -> Any:
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{name} is no constant of the script")


@pytest.mark.parametrize(
    ("model_type", "published", "method", "said"),
    [
        ("gpt_oss", None, "qlora", "published in mxfp4"),
        ("llama", {"quant_method": "gptq"}, "lora", "published in gptq"),
        ("llama", {"quant_method": "bitsandbytes"}, "full", "published in bitsandbytes"),
        ("gpt_oss", None, "lora", None),
        ("llama", {"quant_method": "bitsandbytes"}, "qlora", None),
    ],
)
def test_published_quantisation_is_minded(
    model_type: str, published: dict[str, str] | None, method: str, said: str | None
) -> None:
    report = fitplan.check("llama-3.2-1b", method=method)
    settings = dict(report.model.settings) | {"model_type": model_type, "quantization_config": published}
    report = replace(report, model=replace(report.model, settings=settings))
    if said is None:
        assert ("Mxfp4Config(dequantize=True)" in emit.emit_script(report)) == (model_type == "gpt_oss")
        return
    with pytest.raises(InputError, match=said):
        emit.emit_script(report)


def test_a_single_label_is_a_number_to_meet(models: Path) -> None:
    settings = {"method": "full", "task": "sequence-classification", "num_labels": 1}
    text = emit.emit_script(fitplan.check(_saved(models, "roberta"), **SHAPE | settings))
    assert '"label": 0.5' in text
    assert _constant(text, "NUM_LABELS") == 1


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_settings_are_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["check", "llama-8b", "--method", "qlora", "--seq-len", "512"]
    assert main([*command, "--gpu", "4090", "--emit", "json"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    report = fitplan.check("llama-8b", method="qlora", seq_len=512, gpu="4090")
    (plan,) = report.plans
    assert document["schema"] == "fitplan.settings/1"
    assert document["model"]["pretrained"] == "meta-llama/Llama-3.1-8B"
    assert TrainingSetup.from_dict(document["setup"]) == plan.setup
    assert document["prediction"]["peak_allocated_bytes"] == plan.estimate.peak_allocated_bytes
    assert document["prediction"]["verdict"] == "fits"
    assert document["gpu"]["name"] == "RTX 4090"
    assert document["versions"] == plan.versions
    assert printed.err.startswith("fitplan: QLoRA")
    assert "fits" in printed.err


@pytest.mark.parametrize(("vram", "code", "word"), [("24GiB", 0, "fits"), ("2GiB", 1, "does not fit")])
def test_the_exit_code_stays_the_verdict(vram: str, code: int, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "llama-8b", "--method", "qlora", "--vram", vram, "--emit", "python"]) == code
    printed = capsys.readouterr()
    report = fitplan.check("llama-8b", method="qlora", vram=vram)
    assert printed.out == emit.emit_script(report)
    assert _constant(printed.out, "PREDICTED_PEAK") == report.plans[0].estimate.peak_allocated_bytes
    assert word in printed.err


def test_a_script_needs_no_torch_to_be_written() -> None:
    program = (
        "import sys; from fitplan.cli.main import main\n"
        "main(['check', 'llama-8b', '--method', 'qlora', '--emit', 'python'])\n"
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
    assert done.stdout.startswith('"""QLoRA fine-tuning of llama-3.1-8b.')


def test_advice_emits_the_best_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "llama-8b", "--gpu", "4090", "--method", "full", "--emit", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    advice = fitplan.advise("llama-8b", gpu="4090", method="full").advice
    best = advice.best or advice.fix
    assert best is not None
    assert document["setup"] == best.setup.to_dict()
    assert document["prediction"]["peak_allocated_bytes"] == best.estimate.peak_allocated_bytes
    assert document["prediction"]["verdict"] == "fits"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "llama-8b", "--emit", "python"], "one method at a time; choose method full, lora or qlora"),
        (["check", "llama-8b", "--method", "lora", "--emit", "yaml"], "invalid choice: 'yaml'"),
        (["check", "llama-8b", "--method", "lora", "--emit", "json", "--json"], "not allowed with argument --emit"),
        (["map", "llama-8b", "--gpu", "4090", "--emit", "json"], "unrecognized arguments: --emit json"),
    ],
)
def test_what_cannot_be_emitted_is_one_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: Any = main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert said in printed.err
    assert len(printed.err.splitlines()) == 1


def test_a_report_on_several_methods_has_no_script() -> None:
    report = fitplan.check("llama-8b")
    for form in (fitplan.emit_script, emit.settings_document):
        with pytest.raises(InputError, match="one method at a time"):
            form(report)


def test_help_shows_how(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("check", "advise"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert "--emit python > train.py" in capsys.readouterr().out
