"""Files that people have are read as a careful person reads them; nothing of a file is run, whatever it holds.

``userfiles/`` has real files from public repositories; ``index.json`` says where each is from and what it means.
"""

import contextlib
import itertools
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import fitplan
from fitplan.cli.main import main
from fitplan.errors import InputError, ModelNotFound
from fitplan.question import Question
from fitplan.readers import Reading, read_command_line, read_training_file
from fitplan.setup import SETTINGS

FILES = Path(__file__).parent / "userfiles"
INDEX = json.loads((FILES / "index.json").read_text())["files"]
IN_WORDS = {
    ("axolotl/yxzwayne__Medilora__train__mistral_qlora.yml", "target_modules"): "all-linear",
    ("torchtune/bionlplab__RadReportX__8B_lora_single_device.yaml", "optim"): "adamw_torch",
    ("llamafactory/hiyouga__LLaMA-Factory__examples__train_full__qwen3vl_full_sft.yaml", "dtype"): "float32",
    ("trl/DATEXIS__DeepICD-R1__configs__accelerate_config.yaml", "seq_len"): 1024,
    ("trl/huggingface__alignment-handbook__recipes__zephyr-7b-beta__sft__config_qlora.yaml", "target_modules"): [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    ],
}  # fmt: skip
"""What the index says in words."""


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("entry", INDEX, ids=lambda entry: Path(entry["file"]).stem)
def test_a_real_file_is_read_as_a_careful_person_reads_it(entry: dict[str, Any]) -> None:
    reading = read_training_file(FILES / entry["file"])
    assert reading is not None
    assert reading.tool.lower().replace("-", "").startswith(entry["tool"].replace("_", ""))
    method = None if "method" in reading.settings else "full"  # not every method suits every way to share
    setup = Question(replace(reading, model="llama-3-8b"), method=method).job().setup.to_dict()
    expected = {name: value for name, value in entry["expected"].items() if name in SETTINGS and name != "task"}
    for name, value in expected.items():
        value = IN_WORDS.get((entry["file"], name), value)
        if value is not None:
            assert _plain(setup[name]) == _plain(value), name
    assert bool(reading.traps) >= ("trap" in entry["expected"] and "GRPO" not in entry["expected"]["trap"])


@pytest.mark.parametrize("entry", INDEX, ids=lambda entry: Path(entry["file"]).stem)
def test_every_key_is_told(entry: dict[str, Any]) -> None:
    reading = read_training_file(FILES / entry["file"])
    assert reading is not None
    document = reading.to_dict()
    assert json.loads(json.dumps(document)) == document
    assert not set(reading.understood) & set(reading.ignored)
    told = f"{document['left_out']} {document['traps']}"
    for key in ("deepspeed", "use_vllm", "tokens"):
        if key in reading.understood:
            assert key in told


MODELS = {
    "codellama": "codellama/CodeLlama-7b-Instruct-hf",
    "bionlplab": "llama-3-8b",
    "zephyr": "mistralai/Mistral-7B-v0.1",
    "rbench": "../models/Llama-3-8B",
    "ds_zero3": None,
}


@pytest.mark.parametrize(("part", "model"), MODELS.items())
def test_the_model_is_named_as_the_file_names_it(part: str, model: str | None) -> None:
    (file,) = (FILES / entry["file"] for entry in INDEX if part in entry["file"])
    reading = read_training_file(file)
    assert reading is not None
    assert reading.model == model


def _write(folder: Path, text: str, name: str = "train.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


AXOLOTL = "base_model: llama-3.2-1b\nsequence_len: 1024\nmicro_batch_size: 2\nbf16: true\n"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", {"method": "full", "dtype": "bfloat16", "padding": "longest", "gradient_checkpointing": False}),
        ("adapter: qlora\nload_in_4bit: true\nlora_r: 8", {"method": "qlora", "quant": "nf4", "kbit_cast_back": "all"}),
        ("adapter: lora\nload_in_8bit: true\nlora_r: 8", {"method": "qlora", "quant": "int8", "dtype": "float16"}),
        ("adapter: lora\nload_in_4bit: true\nlora_r: 8", {"method": "lora", "dtype": "float32", "lora_r": 8}),
        ("sample_packing: true", {"batch_size": 1, "seq_len": 2048, "padding": "packed"}),
        ("pad_to_sequence_len: 'true'", {"padding": "max_length", "batch_size": 2}),
        ("gradient_checkpointing: offload", {"gradient_checkpointing": True}),
        ("optimizer: paged_adamw_8bit", {"optim": "paged_adamw_8bit"}),
        ("optimizer: adamw_bnb_8bit", {"optim": "adamw_8bit"}),
        ("optimizer: muon", {"optim": "adamw_torch_fused"}),
        ("flash_attention: true", {"attn": "flash_attention_2"}),
        (
            "adapter: lora\nlora_r: 8\nlora_target_modules: 'layers.[\\d]+.mlp.(up|down)_proj'",
            {"target_modules": r"layers.[\d]+.mlp.(up|down)_proj"},
        ),
        ("float16: true", {"dtype": "float16", "mixed_precision": "no"}),
        ("attn_implementation: eager", {"attn": "eager"}),
        ("gradient_accumulation_steps: '4'", {"gradient_accumulation_steps": 4}),
    ],
)
def test_axolotl(more: str, expected: dict[str, Any], tmp_path: Path) -> None:
    text = AXOLOTL.replace("bf16: true\n", "") if "load_in_8bit" in more or "float16" in more else AXOLOTL
    setup = Question(_write(tmp_path, text + more)).job().setup.to_dict()
    assert {name: setup[name] for name in expected} == expected
    assert setup["stack"] == "axolotl"


FACTORY = "model_name_or_path: llama-3.2-1b\nstage: sft\nbf16: true\n"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", {"method": "lora", "lora_r": 8, "lora_alpha": 16, "batch_size": 8, "seq_len": 2048}),
        ("lora_rank: 32", {"lora_r": 32, "lora_alpha": 64}),
        ("finetuning_type: full", {"method": "full", "dtype": "float32", "mixed_precision": "bf16"}),
        ("finetuning_type: full\npure_bf16: true", {"dtype": "bfloat16", "mixed_precision": "no"}),
        ("quantization_bit: 4", {"method": "qlora", "double_quant": True, "kbit_prepare": False}),
        ("quantization_bit: 4\ndouble_quantization: false", {"double_quant": False}),
        ("quantization_bit: 8", {"quant": "int8"}),
        ("disable_gradient_checkpointing: true", {"gradient_checkpointing": False}),
        ("lora_target: q_proj,v_proj", {"target_modules": ["q_proj", "v_proj"]}),
        ("enable_liger_kernel: true", {"use_liger_kernel": True}),
        ("flash_attn: fa2", {"attn": "flash_attention_2"}),
        ("cutoff_len: 4e3", {"seq_len": 4000}),
    ],
)
def test_llamafactory(more: str, expected: dict[str, Any], tmp_path: Path) -> None:
    setup = Question(_write(tmp_path, FACTORY + more)).job().setup.to_dict()
    assert {name: setup[name] for name in expected} == expected


TRL = "model_name_or_path: llama-3.2-1b\noutput_dir: x\nmax_length: 512\nbf16: true\n"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", {"method": "full", "dtype": "float32", "batch_size": 8, "seq_len": 512, "loss": "fused"}),
        ("use_peft: true", {"method": "lora", "target_modules": "peft-default", "lora_dropout": 0.05}),
        ("use_peft: true\nload_in_4bit: true", {"method": "qlora", "double_quant": False, "adapter_dtype": "bfloat16"}),
        ("use_peft: true\nload_in_8bit: true", {"method": "qlora", "quant": "int8", "double_quant": None}),
        ("dtype: bfloat16", {"dtype": "bfloat16"}),
        ("beta: 0.1", {"objective": "dpo", "precompute_ref_log_probs": False}),
        ("beta: 0.1\nprecompute_ref_log_probs: true", {"objective": "dpo", "precompute_ref_log_probs": True}),
        ("desirable_weight: 1.0", {"objective": "kto"}),
        ("packing: true", {"padding": "packed"}),
        ("padding_free: true", {"padding": "free"}),
        ("gradient_checkpointing: false", {"gradient_checkpointing": False}),
        ("use_peft: true\nlora_target_modules: all-linear", {"target_modules": "all-linear"}),
        ("use_peft: true\nlora_target_modules: [q_proj]", {"target_modules": ["q_proj"]}),
    ],
)
def test_trl(more: str, expected: dict[str, Any], tmp_path: Path) -> None:
    setup = Question(_write(tmp_path, TRL + more)).job().setup.to_dict()
    assert {name: setup[name] for name in expected} == expected


def test_an_adapter_s_config_says_what_it_knows(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "base_model_name_or_path": "x/Llama-3.2-1B",
              "rank_pattern": {"q_proj": 2}}  # fmt: skip
    reading = read_training_file(_write(tmp_path, json.dumps(config), "adapter_config.json"))
    assert reading is not None
    setup = Question(replace(reading, model="llama-3.2-1b")).job().setup
    assert (setup.method, setup.lora_r, setup.target_modules) == ("lora", 4, ("q_proj",))
    assert setup.rank_pattern == (("q_proj", 2),)


def test_arguments_of_a_trainer_have_its_defaults(tmp_path: Path) -> None:
    text = json.dumps({"model_name_or_path": "llama-3.2-1b", "per_device_train_batch_size": 3, "learning_rate": 1e-4})
    setup = Question(_write(tmp_path, text, "args.json")).job().setup
    assert (setup.batch_size, setup.gradient_checkpointing, setup.mixed_precision) == (3, False, "no")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("eval_strategy: steps", {"eval_batch_size": 8}),
        ("eval_strategy: steps\nper_device_eval_batch_size: 2", {"eval_batch_size": 2}),
        ("eval_strategy: 'no'\nper_device_eval_batch_size: 2", {"eval_batch_size": None}),
        ("activation_offloading: true", {"activation_offloading": True}),
        ("center_rewards_coefficient: 0.01", {"objective": "reward", "num_labels": 1, "loss": "logits"}),
        (
            "num_generations: 8\nmax_prompt_length: 300\nmax_completion_length: 200\nbeta: 0.04",
            {"objective": "grpo", "seq_len": 500, "completion_len": 200, "beta": 0.04},
        ),
        ("num_generations: 8", {"objective": "grpo", "seq_len": 1024, "completion_len": 512, "beta": 0.0}),
    ],
)
def test_trl_evaluates_rewards_and_writes_answers(more: str, expected: dict[str, Any], tmp_path: Path) -> None:
    setup = Question(_write(tmp_path, TRL + more)).job().setup.to_dict()
    assert {name: setup[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (AXOLOTL + "val_set_size: 0.05", 2),
        (AXOLOTL + "val_set_size: 0.05\neval_batch_size: 4", 4),
        (AXOLOTL + "val_set_size: 0", None),
        (FACTORY + "val_size: 0.1\neval_strategy: steps", 8),
        (FACTORY + "val_size: 0.1\neval_strategy: steps\nper_device_eval_batch_size: 1", 1),
        (FACTORY + "val_size: 0.1", None),
    ],
)
def test_evaluation_has_its_own_batch(text: str, rows: int | None, tmp_path: Path) -> None:
    assert Question(_write(tmp_path, text)).job().setup.eval_batch_size == rows


def test_axolotl_offloads_activations_in_place_of_checkpointing(tmp_path: Path) -> None:
    text = AXOLOTL + "gradient_checkpointing: true\nactivation_offloading: true\n"
    full = Question(_write(tmp_path, text)).job().setup
    assert (full.gradient_checkpointing, full.activation_offloading) == (True, True)
    lora = Question(_write(tmp_path, text + "adapter: lora\nlora_r: 8\n")).job().setup
    assert (lora.gradient_checkpointing, lora.activation_offloading) == (False, True)


def test_what_is_chosen_beside_a_file_wins(tmp_path: Path) -> None:
    file = _write(tmp_path, AXOLOTL + "adapter: qlora\nload_in_4bit: true\nlora_r: 8")
    (plan,) = fitplan.check(file, gpu="4090", batch_size=1, stack="trainer").plans
    assert (plan.setup.batch_size, plan.setup.seq_len, plan.setup.method) == (1, 1024, "qlora")
    (full,) = fitplan.check(file, gpu="4090", method="full", padding="none", stack="trainer").plans
    assert (full.setup.method, full.setup.lora_r) == ("full", None)


def test_the_answer_says_what_was_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _write(tmp_path, TRL + "torch_dtype: bfloat16\neval_strategy: steps\ndeepspeed: ds.json\nreport_to: wandb")
    assert main(["check", str(file), "--gpu", "h100", "--json"]) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)["file"]
    assert document["tool"] == "TRL"
    assert document["ignored"] == ["output_dir", "report_to"]
    assert "dtype bfloat16" in document["understood"]["torch_dtype"]
    assert "is read as a file of TRL" in said.err
    assert document["understood"]["eval_strategy"] == "eval_batch_size 8"
    assert main(["check", "llama-3.2-1b", "--gpu", "h100", "--json", "--method", "lora"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] is None


def test_a_file_without_a_model_goes_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(_write(tmp_path, json.dumps({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 2}),
                      "ds.json"))  # fmt: skip
    assert main(["check", file, "--gpu", "h100"]) == 2
    assert "names no model; give the model, and the file beside it" in capsys.readouterr().err
    assert main(["check", "llama-3.2-1b", "--from", file, "--gpu", "h100", "--method", "lora", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["plans"][0]["setup"]["batch_size"] == 2
    assert "ZeRO stage 3" in said.err


def test_a_model_that_lies_elsewhere_is_taken_by_its_name(tmp_path: Path) -> None:
    assert (
        Question(_write(tmp_path, "base_model: ../weights/Llama-3.2-1B\nsequence_len: 8")).config.name == "llama-3.2-1b"
    )
    with pytest.raises(ModelNotFound, match=r"names the model /models/BASE.*or give the model, and the file beside it"):
        _ = Question(_write(tmp_path, "base_model: /models/BASE\nsequence_len: 8")).config


BOMB = "a: &a [1]\n" + "\n".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise("abcdefg"))
"""A few hundred bytes that stand for half a million values."""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [1", r"train.yaml is not valid YAML, line"),
        ("- 1\n- 2", "holds a list, not settings"),
        ("some: thing", "is no training file of Axolotl"),
        (BOMB, "stands for more values"),
        ("a: !!python/object/apply:os.system ['touch ran']", "is not valid YAML"),
        ("[" * 5000, "is not valid YAML|is nested too deeply"),
        ("base_model: x\nsequence_len: many", "sequence_len many: seq_len must be a whole number"),
        ("stage: sft\nmodel_name_or_path: gpt2\nlora_dropout: 2", "lora_dropout 2: lora_dropout must lie between"),
        ("export_dir: x\nmodel_name_or_path: gpt2", "exports a model with LLaMA-Factory and trains none"),
        ("template: llama3\nmodel_name_or_path: gpt2", "asks a model in LLaMA-Factory and trains none"),
        ("x" * 2**21, "larger than 1 MiB"),
    ],
)  # fmt: skip
def test_a_file_that_makes_no_sense_is_told_in_a_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        _ = Question(_write(tmp_path, text)).config
    assert not Path("ran").exists()


def test_a_model_s_config_is_no_training_file(tmp_path: Path) -> None:
    assert read_training_file("llama-70b") is None
    assert read_training_file(tmp_path) is None
    assert read_training_file(_write(tmp_path, '{"model_type": "llama"}', "config.json")) is None
    assert read_training_file(_write(tmp_path, "{", "config.json")) is None
    with pytest.raises(InputError, match="does not exist"):
        read_training_file(tmp_path / "none.yaml")


KEYS = sorted({key for entry in INDEX for key in (read_training_file(FILES / entry["file"]) or Reading).understood})
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=6), entry=st.sampled_from(INDEX))
def test_whatever_a_file_says_it_is_read_or_refused_in_a_sentence(changes: Any, entry: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.yaml"
        file.write_text(yaml.safe_dump({**yaml.safe_load((FILES / entry["file"]).read_text()), **changes}))
        with contextlib.suppress(InputError):  # whatever else is raised is a defect
            reading = read_training_file(file)
            assert reading is not None
            assert Question(replace(reading, model="llama-3-8b")).job().setup.batch_size > 0


# --- command lines and objects ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("trl sft --model_name_or_path gpt2", {"stack": "trl", "method": "full", "dtype": "float32", "batch_size": 8}),
        ("trl sft --model_name_or_path gpt2 --use_peft --load_in_4bit=true", {"method": "qlora"}),
        ("trl sft --model_name_or_path gpt2 --packing --max_length 512", {"padding": "packed", "seq_len": 512}),
        ("trl sft --model_name_or_path gpt2 --use-peft --lora_target_modules c_attn c_proj",
         {"target_modules": ["c_attn", "c_proj"]}),
        ("trl dpo --model_name_or_path gpt2", {"objective": "dpo", "loss": "fused"}),
        ("python run_clm.py --model_name_or_path gpt2 --per_device_train_batch_size 4 --block_size 256 --bf16",
         {"stack": "trainer", "batch_size": 4, "seq_len": 256, "gradient_checkpointing": False}),
        ("accelerate launch t.py --model_name_or_path gpt2 --per_device_train_batch_size=2 --optim adamw_bnb_8bit",
         {"batch_size": 2, "optim": "adamw_8bit", "mixed_precision": "no"}),
    ],
)  # fmt: skip
def test_a_command_line_is_read(line: str, expected: dict[str, Any]) -> None:
    setup = Question(read_command_line(line.split())).job().setup.to_dict()
    assert {name: setup[name] for name in expected} == expected


def test_a_command_line_goes_on_from_its_file(tmp_path: Path) -> None:
    file = _write(tmp_path, AXOLOTL + "adapter: lora\nlora_r: 8")
    setup = Question(read_command_line(["axolotl", "train", str(file), "--micro_batch_size", "1"])).job().setup
    assert (setup.stack, setup.batch_size, setup.seq_len, setup.lora_r) == ("axolotl", 1, 1024, 8)
    file = _write(tmp_path, FACTORY)
    setup = Question(read_command_line(["llamafactory-cli", "train", str(file), "cutoff_len=256"])).job().setup
    assert (setup.stack, setup.seq_len) == ("llamafactory", 256)


def test_the_command_asks_about_a_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["trl", "sft", "--model_name_or_path", "llama-3.2-1b", "--dtype", "bfloat16"]
    assert main(["check", "--gpu", "h100", "--json", "--", *line]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["plans"][0]["setup"]["stack"] == "trl"
    assert document["file"]["file"] == "trl sft --model_name_or_path ..."
    assert main(["check", "--gpu", "h100", "--", "python", "train.py"]) == 2
    assert "names no training settings that are known here" in capsys.readouterr().err


def test_objects_of_the_libraries_are_read(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, TrainingArguments

    args = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=3, gradient_accumulation_steps=2, optim="adamw_8bit",
        use_cpu=True, report_to=[],
    )  # fmt: skip
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], use_dora=True, task_type="CAUSAL_LM")
    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )  # fmt: skip
    reading = fitplan.read_training_objects("llama-3.2-1b", args, peft_config=adapter, quantization_config=quantised)
    setup = Question(reading, method=None).job().setup
    assert (setup.method, setup.batch_size, setup.gradient_accumulation_steps) == ("qlora", 3, 2)
    assert (setup.lora_r, setup.adapter, sorted(setup.target_modules or ())) == (4, "dora", ["q_proj", "v_proj"])
    assert (setup.quant, setup.double_quant, setup.compute_dtype) == ("nf4", False, "bfloat16")
    assert (setup.optim, setup.gradient_checkpointing, setup.mixed_precision) == ("adamw_8bit", False, "no")
    whole = Question(fitplan.read_training_objects("llama-3.2-1b", args)).job().setup
    assert whole.method == "full"
    peft_s_own = Question(fitplan.read_training_objects("llama-3.2-1b", peft_config=LoraConfig())).job().setup
    assert (peft_s_own.lora_r, peft_s_own.target_modules, peft_s_own.method) == (8, "peft-default", "lora")


def test_objects_of_another_kind_are_told() -> None:
    from peft import IA3Config
    from transformers import BitsAndBytesConfig

    with pytest.raises(InputError, match="args is a dict, which has no to_dict"):
        fitplan.read_training_objects("gpt2", {"bf16": True})
    with pytest.raises(InputError, match="peft_config of type IA3 is not read here"):
        fitplan.read_training_objects("gpt2", peft_config=IA3Config())
    with pytest.raises(InputError, match="give peft_config, or drop quantization_config"):
        fitplan.read_training_objects("gpt2", quantization_config=BitsAndBytesConfig(load_in_8bit=True))


@pytest.mark.parametrize(
    ("line", "settings"),
    [
        (
            "torchrun --nproc-per-node 4 train.py --output_dir o --per_device_train_batch_size 2",
            {"gpus": 4, "strategy": "ddp"},
        ),
        (
            "torchrun --nproc_per_node=8 train.py --output_dir o --per_device_train_batch_size 2 --fsdp full_shard",
            {"gpus": 8, "strategy": "fsdp2", "reshard_after_forward": True},
        ),
        (
            "accelerate launch --num_processes 2 --use_fsdp --fsdp_version 1 --fsdp_sharding_strategy SHARD_GRAD_OP "
            "--fsdp_backward_prefetch BACKWARD_PRE train.py --output_dir o --per_device_train_batch_size 2",
            {"gpus": 2, "strategy": "fsdp1", "reshard_after_forward": False, "backward_prefetch": "backward_pre"},
        ),
        ("accelerate launch --num_processes 1 train.py --output_dir o --per_device_train_batch_size 2", {}),
    ],
)
def test_a_launcher_says_on_how_many_gpus(line: str, settings: dict[str, Any]) -> None:
    read = dict(read_command_line(line.split()).settings)
    assert {name: read.get(name) for name in settings} == settings
    assert ("gpus" in read) == bool(settings)


@pytest.mark.parametrize(
    ("said", "settings", "left_out"),
    [
        ({"fsdp": "full_shard auto_wrap"}, {"gpus": 2, "strategy": "fsdp2", "reshard_after_forward": True}, ""),
        ({"fsdp": True, "fsdp_config": {"reshard_after_forward": False}}, {"reshard_after_forward": False}, ""),
        (
            {"fsdp": ["full_shard", "offload"], "fsdp_config": {"version": 1, "fsdp_use_orig_params": False}},
            {"strategy": "fsdp1", "use_orig_params": False, "backward_prefetch": "no_prefetch"},
            "parameters on the host",
        ),
        ({"fsdp": "hybrid_shard", "fsdp_config": {"version": 1}}, {"strategy": "fsdp1"}, "hybrid sharding"),
        ({"fsdp": "no_shard", "fsdp_config": {"version": 1}}, {"strategy": "ddp"}, ""),
        ({"fsdp": "", "fsdp_config": {"min_num_params": 0}}, {}, ""),
    ],
)
def test_arguments_say_how_gpus_share(
    said: dict[str, Any], settings: dict[str, Any], left_out: str, tmp_path: Path
) -> None:
    file = tmp_path / "arguments.json"
    file.write_text(json.dumps({"output_dir": "o", "per_device_train_batch_size": 1, "learning_rate": 1e-4, **said}))
    reading = read_training_file(file)
    assert reading is not None
    assert {name: reading.settings.get(name) for name in settings} == settings
    assert ("strategy" in reading.settings) == bool(settings)
    assert any("on how many GPUs" in one for one in reading.traps) == bool(settings)
    assert not left_out or any(left_out in one for one in reading.left_out)


def test_accelerates_file_says_how_gpus_share() -> None:
    files = sorted((Path(__file__).parent / "userfiles" / "accelerate").iterdir())
    found = [dict(reading.settings) for file in files if (reading := read_training_file(file)) is not None]
    assert [(one["gpus"], one["strategy"], one["use_orig_params"]) for one in found] == [
        (8, "fsdp1", True),
        (4, "fsdp1", False),
    ]
    assert all(one["backward_prefetch"] == "backward_pre" for one in found)
