"""The settings of a plan for other programs: a training script that runs them, and a document that lists them.

The script does through the libraries' front doors what :mod:`fitplan.step` does piece by piece: ``from_pretrained``,
``prepare_model_for_kbit_training``, ``get_peft_model``, ``Trainer``. Every setting that was estimated stands in it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from string import Template
from textwrap import indent
from typing import Any

from fitplan.configs.resolve import ModelConfig
from fitplan.errors import InputError
from fitplan.plan import CheckReport, Plan
from fitplan.setup import (
    END_TO_END,
    SHARDED,
    Adapter,
    KbitCastBack,
    Loss,
    Method,
    MixedPrecision,
    Objective,
    Padding,
    Quant,
    Strategy,
    Task,
    TrainingSetup,
)
from fitplan.step.adapters import KINDS, peft_arguments
from fitplan.units import gib

SCHEMA = "fitplan.settings/1"
ONE_METHOD = "settings are emitted for one method at a time; choose method full, lora or qlora"


def settings_document(report: CheckReport) -> dict[str, Any]:
    """The ``fitplan.settings/1`` document of a report on one method. Keys are added, never renamed.

    Raises:
        InputError: the report is on several methods.

    """
    plan = _only_plan(report)
    answer = report.to_dict()
    found = answer["plans"][0]
    estimate = {name: value for name, value in found["estimate"].items() if name != "moments"}
    verdict = {name: found[name] for name in ("verdict", "slack_bytes", "uncertainty_bytes")}
    return {
        "schema": SCHEMA,
        "model": answer["model"] | {"pretrained": report.model.pretrained},
        "gpu": answer["gpu"],
        "setup": found["setup"],
        "prediction": {"source": plan.source, **estimate, **verdict},
        "versions": plan.versions,
    }


def emit_script(report: CheckReport) -> str:
    """A training script with the settings of a report on one method; it needs no fitplan.

    Raises:
        InputError: the report is on several methods, or the published weights cannot be loaded as the setup says.

    """
    plan = _only_plan(report)
    _check_trainer(plan.setup)
    data = _data(plan.setup)
    functions = (
        _load_model(report.model, plan),
        data.reader,
        _made_up_examples(plan.setup, data),
        _MAKE_ROWS.substitute(body=data.rows),
        _main(report.model, plan, data),
        _REPORT_PEAK,
    )
    body = "\n\n\n".join(functions)
    return _SCRIPT.substitute(
        docstring=_docstring(report, plan, data),
        imports=_imports(body, expandable=plan.setup.expandable_segments),
        constants=_constants(report.model, plan),
        body=body,
    )


def _check_trainer(setup: TrainingSetup) -> None:
    """The script is one for ``transformers.Trainer``.

    Raises:
        InputError: another stack does what the setup says.

    """
    foreign = {
        "objective": setup.objective is not Objective.SFT,
        "completion_len": setup.completion_len is not None,
        "activation_offloading": setup.activation_offloading,
        "loss": setup.loss is not Loss.LOGITS,
        "adapter_dtype": setup.adapter_dtype is not None,
        "kbit_cast_back": setup.kbit_cast_back not in (None, KbitCastBack.NONE),
        "padding": setup.padding in END_TO_END,
        "gradient_as_bucket_view": bool(setup.gradient_as_bucket_view),
    }
    for name, is_foreign in foreign.items():
        if is_foreign:
            raise InputError(
                f"a script for transformers.Trainer has no {name} {getattr(setup, name)}; emit json instead, or choose "
                "stack trainer"
            )


def _only_plan(report: CheckReport) -> Plan:
    if len(report.plans) != 1:
        raise InputError(ONE_METHOD)
    return report.plans[0]


def _task(setup: TrainingSetup) -> Task:
    assert setup.task is not None, "an estimated setup knows its task"
    return setup.task


def _transformers(plan: Plan) -> int:
    """The major version of transformers that was estimated for; the script is written for that one."""
    return int(plan.versions["transformers"].partition(".")[0])


# --- the frame --------------------------------------------------------------------------------------------------------

_SCRIPT = Template('''\
"""$docstring"""

$imports

$constants


$body


if __name__ == "__main__":
    main()
''')

_DOCSTRING = Template("""\
$method of $model.

    $launcher train.py           a few steps on made-up text: does it run, and what does it take?
    $launcher train.py FILE      one pass over your data: $file

fitplan predicts $prediction,
with $versions.
It holds for $gpus and the settings below; other learning rates do
not change it.
""")

_ONE_GPU = "one GPU (CUDA_VISIBLE_DEVICES=0 where there are several)"

_METHOD_NAMES = {Method.FULL: "Full fine-tuning", Method.LORA: "LoRA fine-tuning", Method.QLORA: "QLoRA fine-tuning"}


def _docstring(report: CheckReport, plan: Plan, data: "_Data") -> str:
    gpus = plan.setup.gpus
    return _DOCSTRING.substitute(
        launcher="python" if gpus == 1 else f"torchrun --nproc-per-node {gpus}",
        gpus=_ONE_GPU if gpus == 1 else f"each of {gpus} GPUs",
        model=_plain(report.model.name),
        method=_METHOD_NAMES[plan.setup.method],
        file=data.file,
        prediction=_prediction(report, plan),
        versions=", ".join(f"{name} {version}" for name, version in plan.versions.items()),
    )


def _prediction(report: CheckReport, plan: Plan) -> str:
    needs = f"{gib(plan.estimate.peak_allocated_bytes)} allocated at the peak"
    if report.gpu is None or plan.verdict is None:
        return needs
    slack = plan.verdict.slack_bytes
    rest = f"with {gib(slack)} left" if slack >= 0 else f"which is {gib(-slack)} too much"
    return f"{needs}, {rest} on {_plain(report.gpu.name)}"


_STANDARD = ("argparse", "json")
_FROM_STANDARD = {"pathlib": ("Path",), "typing": ("Any",)}
_FROM_OTHERS = {
    "peft": (
        *sorted({"PeftModel", *(kind.config for kind in KINDS.values())}),
        "get_peft_model",
        "prepare_model_for_kbit_training",
    ),
    "transformers": (
        "AutoConfig",
        "AutoModelForCausalLM",
        "AutoModelForMaskedLM",
        "AutoModelForSeq2SeqLM",
        "AutoModelForSequenceClassification",
        "AutoTokenizer",
        "BitsAndBytesConfig",
        "DataCollatorForLanguageModeling",
        "DataCollatorForSeq2Seq",
        "DataCollatorWithPadding",
        "Mxfp4Config",
        "PreTrainedModel",
        "PreTrainedTokenizerBase",
        "Trainer",
        "TrainingArguments",
        "default_data_collator",
    ),
}


_EXPANDABLE = """
# Read when torch is imported: segments that grow leave less of what is reserved idle.
os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
"""


def _imports(body: str, *, expandable: bool) -> str:
    """What the body uses, in isort's order; what the allocator is told stands before torch."""
    used = set(re.findall(r"\w+", body))

    def lines(modules: Mapping[str, tuple[str, ...]]) -> list[str]:
        chosen = {module: [name for name in names if name in used] for module, names in modules.items()}
        return [_import(module, names) for module, names in chosen.items() if names]

    standard = [f"import {name}" for name in (*_STANDARD, *(["os"] if expandable else []))]
    allocator = [_EXPANDABLE] if expandable else []
    return "\n".join([*standard, *lines(_FROM_STANDARD), *allocator, "", "import torch", *lines(_FROM_OTHERS)])


def _import(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    return line if len(line) <= _WIDTH else _exploded(f"from {module} import ", names)


_LEARNING_RATES = {Method.FULL: "2e-5", Method.LORA: "2e-4", Method.QLORA: "2e-4"}
"""To begin with. For adapters: Dettmers et al., 2023 (arXiv 2305.14314), for models of 7 and 13 B."""


def _constants(model: ModelConfig, plan: Plan) -> str:
    setup = plan.setup
    lines = [
        _model_constant(model),
        f'OUTPUT = "{_slug(model)}-{setup.method}"',
        f"SEQ_LEN = {setup.seq_len}  # tokens in a row",
        f"BATCH_SIZE = {setup.batch_size}  # rows that are on the GPU together",
        f"ACCUMULATION_STEPS = {setup.gradient_accumulation_steps}  # batches in a step of the optimizer",
        f"LEARNING_RATE = {_LEARNING_RATES[setup.method]}  # to begin with; memory does not depend on it",
        f"PREDICTED_PEAK = {plan.estimate.peak_allocated_bytes:_}  # bytes, of torch.cuda.max_memory_allocated()",
    ]
    if _task(setup) is Task.SEQUENCE_CLASSIFICATION:
        lines.append(f"NUM_LABELS = {_num_labels(model, setup)}")
    return "\n".join(lines)


def _model_constant(model: ModelConfig) -> str:
    if model.pretrained is None:
        return f'MODEL = "./{_slug(model)}"  # the folder of the weights: fitplan knows of none that are published'
    return f"MODEL = {_text(model.pretrained)}"


def _num_labels(model: ModelConfig, setup: TrainingSetup) -> int:
    """As transformers counts: ``num_labels``, else the labels that the config names, else two."""
    named = model.settings.get("id2label")
    return setup.num_labels or (len(named) if isinstance(named, dict) and named else 2)


# --- the model --------------------------------------------------------------------------------------------------------

AUTO_CLASSES = {
    Task.CAUSAL_LM: "AutoModelForCausalLM",
    Task.SEQ2SEQ_LM: "AutoModelForSeq2SeqLM",
    Task.MASKED_LM: "AutoModelForMaskedLM",
    Task.SEQUENCE_CLASSIFICATION: "AutoModelForSequenceClassification",
}

_LOAD_MODEL = Template('''\
def load_model(name: str) -> $kind:
    """$purpose"""
$body''')


def _load_model(model: ModelConfig, plan: Plan) -> str:
    setup = plan.setup
    quantisation = _quantisation(model, setup)
    body = [
        *quantisation,
        *_from_pretrained(model, plan, quantised=bool(quantisation)),
        "model.config.use_cache = False  # the cache of keys and values is for generation",
    ]
    if setup.method is Method.FULL:
        kind, purpose = "PreTrainedModel", "The model, all of whose weights are trained."
        body.append("return model")
    elif setup.adapter is Adapter.BITFIT:
        kind, purpose = "PreTrainedModel", "The frozen model, of which the biases are trained."
        body += [*_kbit_preparation(plan), *_BIASES]
    else:
        kind, purpose = "PeftModel", "The frozen model with the adapters that are trained."
        body += [*_kbit_preparation(plan), *_adapters(plan)]
    return _LOAD_MODEL.substitute(kind=kind, purpose=purpose, body=_inside(body))


def _quantisation(model: ModelConfig, setup: TrainingSetup) -> list[str]:
    """The quantisation of the loaded weights; published MXFP4 weights must be dequantised to be trained.

    Source: transformers ``AutoHfQuantizer.merge_quantization_configs``, which takes no other class of config than that
    of the published weights.
    """
    published = _published_quantisation(model)
    if published not in (None, "bitsandbytes" if setup.method is Method.QLORA else "mxfp4"):
        raise InputError(
            f"the weights of {model.name} are published in {published}, which cannot be loaded for {setup.method}; "
            "choose another method, or give a folder with the unquantised weights"
        )
    if published == "mxfp4":
        return ["quantization = Mxfp4Config(dequantize=True)  # published in 4 bits, which cannot be trained"]
    if setup.quant is None:
        return []
    if setup.quant is Quant.INT8:
        return ["quantization = BitsAndBytesConfig(load_in_8bit=True)"]
    settings = [
        "load_in_4bit=True",
        f'bnb_4bit_quant_type="{setup.quant}"',
        f"bnb_4bit_use_double_quant={setup.double_quant}",
        f"bnb_4bit_compute_dtype=torch.{setup.compute_dtype}",
        *([f"bnb_4bit_quant_storage=torch.{setup.quant_storage}"] if setup.quant_storage else []),
    ]
    return [_exploded("quantization = BitsAndBytesConfig", settings)]


def _published_quantisation(model: ModelConfig) -> str | None:
    """The format of the published weights; the shipped config of gpt-oss is that of its dequantised form."""
    if model.source == "shipped" and model.settings["model_type"] == "gpt_oss":
        return "mxfp4"
    config = model.settings.get("quantization_config")
    return str(config.get("quant_method", "an unknown format")) if isinstance(config, dict) else None


def _from_pretrained(model: ModelConfig, plan: Plan, *, quantised: bool) -> list[str]:
    setup = plan.setup
    arguments = [
        f"{'dtype' if _transformers(plan) >= 5 else 'torch_dtype'}=torch.{setup.dtype}",
        f'attn_implementation="{setup.attn}"',
    ]
    if quantised:
        arguments.append("quantization_config=quantization")
    if _is_text_part(model):
        return _text_part_from_pretrained(_task(setup), arguments)
    if _task(setup) is Task.SEQUENCE_CLASSIFICATION:
        arguments.append("num_labels=NUM_LABELS")
    return [_exploded(f"model = {AUTO_CLASSES[_task(setup)]}.from_pretrained", ["name", *arguments])]


def _text_part_from_pretrained(task: Task, arguments: list[str]) -> list[str]:
    """The language model alone; its weights have other names in the file, and would silently be left random."""
    classifies = task is Task.SEQUENCE_CLASSIFICATION
    part = ["config=config", "key_mapping=language_model", "output_loading_info=True"]
    return [
        "# Where the model takes images as well, only its language model is loaded.",
        "config = AutoConfig.from_pretrained(name).get_text_config()",
        *(["config.num_labels = NUM_LABELS"] if classifies else []),
        _exploded("language_model = ", [f'r"{old}": "{new}"' for old, new in _LANGUAGE_MODEL.items()], "{}"),
        _exploded(f"model, loading = {AUTO_CLASSES[task]}.from_pretrained", ["name", *part, *arguments]),
        'missing = set(loading["missing_keys"])' + (' - {"score.weight"}' if classifies else ""),
        "if missing:",
        '    raise SystemExit(f"{name} holds no weights for {sorted(missing)}")',
    ]


def _is_text_part(model: ModelConfig) -> bool:
    """Whether what was estimated is the text part of a multimodal model."""
    return "text_config" in model.settings or str(model.settings["model_type"]).endswith("_text")


_LANGUAGE_MODEL = {
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^model\.language_model\.": "model.",
}
"""Where multimodal checkpoints keep their language model: as published, and as transformers 5 names its modules."""


def _kbit_preparation(plan: Plan) -> list[str]:
    setup = plan.setup
    if not setup.kbit_prepare:
        return []
    arguments = ["model", f"use_gradient_checkpointing={setup.gradient_checkpointing}"]
    if setup.gradient_checkpointing:
        arguments.append(_checkpointing_kwargs(plan))
    return [
        "# Casts what is not quantised (norms, embeddings, head) to float32: steadier, and larger.",
        _exploded("model = prepare_model_for_kbit_training", arguments),
    ]


_BIASES = (
    "for parameter_name, parameter in model.named_parameters():",
    '    parameter.requires_grad_(parameter_name.endswith("bias") and parameter.is_floating_point())',
    "return model",
)


def _adapters(plan: Plan) -> list[str]:
    setup = plan.setup
    assert setup.adapter is not None, "what is not fully trained has an adapter"
    kind = KINDS[setup.adapter]
    variable = "lora" if kind.config == "LoraConfig" else "adapter"
    arguments = [_argument(name, value) for name, value in peft_arguments(setup, _task(setup)).items()]
    config = _exploded(f"{variable} = {kind.config}", arguments)
    if not (setup.gradient_checkpointing and _use_reentrant(plan)):
        return [config, f"return get_peft_model(model, {variable})"]
    return [
        config,
        f"model = get_peft_model(model, {variable})",
        "# Reentrant checkpoints pass gradients on only where an input asks for them.",
        "model.enable_input_require_grads()",
        "return model",
    ]


def _argument(name: str, value: Any) -> str:
    if name == "total_step":
        return f"# Of its own schedule, which needs a callback; memory does not depend on it.\n{name}={value}"
    if not isinstance(value, list):
        return f"{name}={_text(value) if isinstance(value, str) else repr(value)}"
    items = [_text(item) if isinstance(item, str) else repr(item) for item in value]
    line = f"{name}=[{', '.join(items)}]"
    return line if len(line) <= _WIDTH - len("        ,") else _exploded(f"{name}=", items, "[]")


def _use_reentrant(plan: Plan) -> bool:
    """The default of ``gradient_checkpointing_enable``, which the step took; transformers 5 turned it around."""
    return _transformers(plan) < 5


def _checkpointing_kwargs(plan: Plan) -> str:
    return f'gradient_checkpointing_kwargs={{"use_reentrant": {_use_reentrant(plan)}}}'


# --- the data ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Data:
    """The part of the script that makes rows of data.

    Attributes:
        file: what the user's file holds.
        reader: the function that reads it.
        example: what is made up for one text where there is no file.
        rows: the body of the function that makes rows of tokens from examples.
        collator: what makes a batch of rows.

    """

    file: str
    reader: str
    example: str
    rows: str
    collator: str


def _data(setup: TrainingSetup) -> _Data:
    """Texts are joined where nothing is padded; rows with a target of their own cannot be, and are padded."""
    full = setup.padding is Padding.NONE
    padding = f'padding="{Padding.LONGEST if full else setup.padding}", max_length=SEQ_LEN'
    match _task(setup):
        case Task.CAUSAL_LM if full:
            return _texts(_JOINED_TEXTS, "default_data_collator")
        case Task.CAUSAL_LM:
            return _texts(_SINGLE_TEXTS, f"DataCollatorForSeq2Seq(tokenizer, {padding})")
        case Task.MASKED_LM:
            early = ', padding="max_length"' if setup.padding is Padding.MAX_LENGTH else ""  # the collator does not
            rows = _JOINED_TEXTS_TO_MASK if full else _SINGLE_TEXTS_TO_MASK.substitute(padding=early)
            return _texts(rows, "DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)")
        case Task.SEQ2SEQ_LM:
            return _Data(
                '{"source": ..., "target": ...} on each line',
                _READ_OBJECTS,
                '{"source": text, "target": text}',
                _PAIRS,
                f"DataCollatorForSeq2Seq(tokenizer, {padding})",
            )
        case Task.SEQUENCE_CLASSIFICATION:
            label = "0.5" if setup.num_labels == 1 else "0"  # transformers takes a single label for a number to meet
            return _Data(
                f'{{"text": ..., "label": {label}}} on each line',
                _READ_OBJECTS,
                f'{{"text": text, "label": {label}}}',
                _LABELLED_TEXTS,
                f"DataCollatorWithPadding(tokenizer, {padding})",
            )


def _texts(rows: str, collator: str) -> _Data:
    file = '{"text": ...} on each line (.jsonl), or plain text'
    return _Data(file, _READ_TEXTS, '{"text": text}', rows, collator)


_READ_TEXTS = '''\
def read_examples(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; of any other file the texts, which empty lines part."""
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".jsonl":
        return [{"text": text} for text in content.split("\\n\\n") if text.strip()]
    return [json.loads(line) for line in content.split("\\n") if line.strip()]'''

_READ_OBJECTS = '''\
def read_examples(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file."""
    lines = path.read_text(encoding="utf-8").split("\\n")
    return [json.loads(line) for line in lines if line.strip()]'''

_MADE_UP = Template('''\
def made_up_examples() -> list[dict[str, Any]]:
    """Enough for three steps of the optimizer, whose states are there from the end of the first one on."""
    number = 3 * BATCH_SIZE * ACCUMULATION_STEPS
    sentence = "The quick brown fox jumps over the lazy dog. "  # nine tokens at least
    texts = $texts
    return [$example for text in texts]''')

_MADE_UP_TEXTS = {
    Padding.NONE: "[sentence * (SEQ_LEN // 9 + 1)] * number  # longer than a row",
    Padding.LONGEST: "[sentence * (SEQ_LEN // (9 if row % 2 else 18) + 1) for row in range(number)]  # some are padded",
    Padding.MAX_LENGTH: "[sentence * (SEQ_LEN // 18 + 1)] * number  # shorter than a row: all are padded",
}


def _made_up_examples(setup: TrainingSetup, data: _Data) -> str:
    return _MADE_UP.substitute(texts=_MADE_UP_TEXTS[setup.padding], example=data.example)


_MAKE_ROWS = Template("""\
def make_rows(examples: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
$body""")

_JOINED_TEXTS = '''\
    """Rows of exactly SEQ_LEN tokens: texts are joined and cut, so nothing is padded and no mask is built."""
    texts = tokenizer([example["text"] for example in examples])["input_ids"]
    tokens = [token for text in texts for token in [*text, tokenizer.eos_token_id]]
    rows = [tokens[start : start + SEQ_LEN] for start in range(0, len(tokens) - SEQ_LEN + 1, SEQ_LEN)]
    return [{"input_ids": row, "attention_mask": [1] * SEQ_LEN, "labels": row} for row in rows]'''

_JOINED_TEXTS_TO_MASK = '''\
    """Rows of exactly SEQ_LEN tokens: texts are joined and cut, so nothing is padded and no mask is built."""
    texts = tokenizer([example["text"] for example in examples])["input_ids"]
    tokens = [token for text in texts for token in text]
    rows = [tokens[start : start + SEQ_LEN] for start in range(0, len(tokens) - SEQ_LEN + 1, SEQ_LEN)]
    return [{"input_ids": row, "attention_mask": [1] * SEQ_LEN} for row in rows]'''

_SINGLE_TEXTS = '''\
    """A row of at most SEQ_LEN tokens for each text."""
    texts = [example["text"] for example in examples]
    rows = tokenizer(texts, truncation=True, max_length=SEQ_LEN - 1)["input_ids"]
    rows = [[*row, tokenizer.eos_token_id] for row in rows]
    return [{"input_ids": row, "labels": row} for row in rows]'''

_SINGLE_TEXTS_TO_MASK = Template('''\
    """A row of at most SEQ_LEN tokens for each text."""
    texts = [example["text"] for example in examples]
    rows = tokenizer(texts, truncation=True, max_length=SEQ_LEN$padding)
    masks = rows["attention_mask"]
    return [{"input_ids": row, "attention_mask": mask} for row, mask in zip(rows["input_ids"], masks, strict=True)]''')

_PAIRS = '''\
    """A row of at most SEQ_LEN tokens on either side for each pair."""
    sources = tokenizer([example["source"] for example in examples], truncation=True, max_length=SEQ_LEN)
    targets = tokenizer(text_target=[example["target"] for example in examples], truncation=True, max_length=SEQ_LEN)
    pairs = zip(sources["input_ids"], targets["input_ids"], strict=True)
    return [{"input_ids": source, "labels": target} for source, target in pairs]'''

_LABELLED_TEXTS = '''\
    """A row of at most SEQ_LEN tokens for each text."""
    texts = [example["text"] for example in examples]
    rows = tokenizer(texts, truncation=True, max_length=SEQ_LEN)["input_ids"]
    return [{"input_ids": row, "label": example["label"]} for row, example in zip(rows, examples, strict=True)]'''


# --- the run ----------------------------------------------------------------------------------------------------------

MAX_GRAD_NORM = 1.0

_MAIN = Template('''\
def main() -> None:
    """Train, report the peak, save."""
    parser = argparse.ArgumentParser(description="$description")
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the data (default: made-up text)")
    parser.add_argument("--model", default=MODEL, help="a hub id or a folder (default: %(default)s)")
    parser.add_argument("--output-dir", default=OUTPUT, help="a folder for the result (default: %(default)s)")
    parser.add_argument("--max-steps", type=int, default=-1, help="steps of the optimizer (default: one pass)")
    options = parser.parse_args()

$data
    if not rows:
        parser.error(f"{options.file} does not fill one row")
$model
$arguments
$trainer
    trainer.train()
    report_peak()
    trainer.save_model()''')

_REPORT_PEAK = '''\
def report_peak() -> None:
    """What was allocated at the peak, beside what was predicted."""
    predicted = f"predicted: {PREDICTED_PEAK / 2**30:.2f} GiB"
    if not torch.cuda.is_available():
        print(f"no CUDA GPU, nothing was measured; {predicted}")
        return
    measured = torch.cuda.max_memory_allocated()
    print(f"allocated at the peak: {measured / 2**30:.2f} GiB; {predicted} ({measured / PREDICTED_PEAK - 1:+.2%})")'''


def _main(model: ModelConfig, plan: Plan, data: _Data) -> str:
    setup = plan.setup
    pads = data.collator != "default_data_collator"
    rows = [
        "tokenizer = AutoTokenizer.from_pretrained(options.model)",
        *(["tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token"] if pads else []),
        "examples = read_examples(options.file) if options.file else made_up_examples()",
        "rows = make_rows(examples, tokenizer) if examples else []",
    ]
    load = ["model = load_model(options.model)"]
    if _task(setup) is Task.SEQUENCE_CLASSIFICATION:
        load.append(
            "model.config.pad_token_id = tokenizer.pad_token_id  # the classifier reads the last token before it"
        )
    evaluated = setup.eval_batch_size
    trainer = [
        "model=model",
        "args=arguments",
        "train_dataset=rows",
        *([f"# Better rows that are not trained on.\neval_dataset=rows[:{2 * evaluated}]"] if evaluated else []),
        f"{_collator_comment(setup)}data_collator={data.collator}",
        "processing_class=tokenizer",
    ]

    return _MAIN.substitute(
        description=f"Fine-tune {_plain(model.name)}.",
        data=_inside(rows),
        model=_inside(load),
        arguments=_inside([_exploded("arguments = TrainingArguments", _training_arguments(plan))]),
        trainer=_inside([_exploded("trainer = Trainer", trainer)]),
    )


def _collator_comment(setup: TrainingSetup) -> str:
    """A row with a target of its own cannot be joined to others, whatever the setup says of padding."""
    own_target = _task(setup) in (Task.SEQ2SEQ_LM, Task.SEQUENCE_CLASSIFICATION)
    if own_target and setup.padding is Padding.NONE:
        return "# The prediction is for full rows: padding shorter ones builds a mask.\n"
    return ""


def _training_arguments(plan: Plan) -> list[str]:
    setup = plan.setup
    autocast = setup.mixed_precision is not MixedPrecision.NO
    return [
        "output_dir=options.output_dir",
        "num_train_epochs=1",
        "max_steps=options.max_steps",
        "learning_rate=LEARNING_RATE",
        "per_device_train_batch_size=BATCH_SIZE",
        "gradient_accumulation_steps=ACCUMULATION_STEPS",
        *_checkpointing(plan),
        *_evaluation(setup),
        *([f"# Autocast around the forward pass.\n{setup.mixed_precision}=True"] if autocast else []),
        f'optim="{setup.optim}"',
        *(["# Of the package liger-kernel.\nuse_liger_kernel=True"] if setup.use_liger_kernel else []),
        f"max_grad_norm={MAX_GRAD_NORM}",
        *_several(setup),
        "logging_steps=10",
        '# The result is saved at the end.\nsave_strategy="no"',
        'report_to="none"',
        "# Without a GPU the script can be tried on a small model.\nuse_cpu=not torch.cuda.is_available()",
    ]


def _several(setup: TrainingSetup) -> list[str]:
    """How several GPUs share the model; with DDP nothing is to be said."""
    if setup.strategy not in SHARDED:
        return []
    config: dict[str, Any] = {"version": 2 if setup.strategy is Strategy.FSDP2 else 1}
    if setup.strategy is Strategy.FSDP1:
        config["use_orig_params"] = setup.use_orig_params
        config["backward_prefetch"] = str(setup.backward_prefetch)
    config["reshard_after_forward"] = setup.reshard_after_forward
    if setup.strategy is Strategy.FSDP1:
        config["reshard_after_forward"] = "FULL_SHARD" if setup.reshard_after_forward else "SHARD_GRAD_OP"
    items = [f'"{name}": {_text(value) if isinstance(value, str) else value}' for name, value in config.items()]
    return ['# Each GPU holds a part of the model.\nfsdp="full_shard auto_wrap"', f"fsdp_config={{{', '.join(items)}}}"]


def _evaluation(setup: TrainingSetup) -> list[str]:
    rows = setup.eval_batch_size
    return [] if rows is None else ['eval_strategy="steps"', f"per_device_eval_batch_size={rows}"]


def _checkpointing(plan: Plan) -> list[str]:
    if not plan.setup.gradient_checkpointing:
        return ["gradient_checkpointing=False"]
    why = "# Of each layer only the input is kept: backward runs its forward again."
    return [f"{why}\ngradient_checkpointing=True", _checkpointing_kwargs(plan)]


# --- Python as text ---------------------------------------------------------------------------------------------------

_WIDTH = 120


def _exploded(head: str, items: Iterable[str], brackets: str = "()") -> str:
    """``head(...)`` with an item on each line; a comment stands above its item."""
    return "\n".join([f"{head}{brackets[0]}", _inside(f"{item}," for item in items), brackets[1]])


def _inside(lines: Iterable[str]) -> str:
    return indent("\n".join(lines), "    ")


def _text(text: str) -> str:
    """A string literal, quoted as ruff does."""
    literal = repr(text)
    return f'"{literal[1:-1]}"' if literal[0] == "'" and '"' not in text else literal


def _plain(name: str) -> str:
    """A name in prose: nothing in it can end the text that it stands in."""
    return re.sub(r"[^\w./ -]", "?", name, flags=re.ASCII)


def _slug(model: ModelConfig) -> str:
    """The model's name as the name of a folder."""
    return re.sub(r"[^a-z0-9.]+", "-", model.name.lower()).strip("-.") or "model"
