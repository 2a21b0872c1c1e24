"""From what a person types to a model config: shipped, local folder or file, Hugging Face cache, hub."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitplan.configs.catalog import family, spellings
from fitplan.errors import InputError, MissingDependency, ModelNotFound
from fitplan.installing import install
from fitplan.names import did_you_mean, plain

MAX_CONFIG_BYTES = 16 * 2**20
HUB_TIMEOUT_SECONDS = 5
LONGEST_NAME = 100
"""Of a name that is not known, so much is shown."""


@dataclass(frozen=True)
class ModelConfig:
    """A model's architecture, as its ``config.json`` gives it.

    Attributes:
        name: what to call it.
        source: where it came from: ``"shipped"``, ``"file"``, ``"cache"``, ``"hub"`` or ``"given"``.
        settings: the content of ``config.json``.
        pretrained: what ``from_pretrained`` takes for its weights, a hub id or a folder; ``None`` where none is known.
        is_text_of_more: whether it was published as a part of a model that reads more than text.
        attn: the ``attn_implementation`` that a ``PretrainedConfig`` was made with.

    """

    name: str
    source: str
    settings: Mapping[str, Any]
    pretrained: str | None = None
    is_text_of_more: bool = False
    attn: str | None = None

    @property
    def is_part(self) -> bool:
        """Whether it is, or holds, the text part of a model that reads more."""
        return self.is_text_of_more or bool({"vision_config", "audio_config"} & self.settings.keys())

    @property
    def architecture(self) -> str:
        """The class that the config names, else the model type."""
        named = self.settings.get("architectures")
        first = named[0] if isinstance(named, list) and named else None
        return str(first or self.settings.get("model_type"))

    @property
    def bitsandbytes(self) -> Mapping[str, Any]:
        """The ``BitsAndBytesConfig`` that its weights were published with; nothing where they were with none."""
        stored = self.settings.get("quantization_config")
        if not isinstance(stored, Mapping) or stored.get("quant_method", "bitsandbytes") != "bitsandbytes":
            return {}
        return stored if stored.get("load_in_4bit") or stored.get("load_in_8bit") else {}

    @property
    def text(self) -> Mapping[str, Any]:
        """The settings of the text model, which a model that reads more nests."""
        return self.settings.get("text_config") or self.settings

    @property
    def positions(self) -> int | None:
        """The positions that the config names, in whole 64s: tables of positions hold a few that are not for tokens."""
        known = [self.text.get(name) for name in ("max_position_embeddings", "n_positions")]
        least = min((n for n in known if isinstance(n, int) and n > 0), default=None)
        return least and (least // 64 * 64 or least)

    @property
    def rows_of_positions(self) -> int:
        """Rows of the embedding of positions, if there is one; 0 where the config names no positions.

        Source: transformers ``models/opt/modeling_opt.py``, ``OPTLearnedPositionalEmbedding``: two rows come before.
        """
        rows = self.text.get("max_position_embeddings")
        return rows + 2 * (self.text.get("model_type") == "opt") if isinstance(rows, int) else 0

    @property
    def loss_pieces(self) -> int:
        """Vocabulary / hidden size, rounded up; 0 where the config does not name both."""
        vocabulary, hidden = self.text.get("vocab_size"), self.text.get("hidden_size")
        return -(-vocabulary // hidden) if vocabulary and hidden else 0

    @property
    def windows(self) -> tuple[int, ...]:
        """Lengths beyond which attention or positions may be computed in another way."""
        names = ("sliding_window", "attention_chunk_size", "original_max_position_embeddings")
        return tuple(n for name in names if isinstance(n := self.text.get(name), int) and n > 1)


def resolve_model(model: Any) -> ModelConfig:
    """The config of ``model``: an alias, hub id, folder, ``config.json``, or a transformers ``PretrainedConfig``.

    A config that was resolved before stays as it is.

    Shipped configs come first, then the local Hugging Face cache, then the hub. What is only another spelling of a
    shipped model's name, or its hub id without the owner, gives way to a file or folder of that name. Nothing is
    fetched unless the name has the form of a hub id (``owner/name``), and never more than ``config.json``.

    Raises:
        ModelNotFound: nothing is known under that name.
        InputError: what was found is not a model config.

    """
    if isinstance(model, ModelConfig):
        return model
    if hasattr(model, "to_dict") and hasattr(model, "model_type") and not isinstance(model, type):
        settings = model.to_dict()
        known = getattr(model, "name_or_path", "") or None
        attn = getattr(model, "_attn_implementation", None)
        return _checked(ModelConfig(known or model.model_type, "given", settings, known, attn=attn))
    if not isinstance(model, str | Path):
        raise InputError(f"a model is a name, a path or a PretrainedConfig, not {type(model).__name__}")
    text = without_address(str(model))
    path = _path(text)
    shipped = spellings().get(plain(text))
    if shipped is not None and (_is_shipped_name(text) or not _exists(path)):
        return ModelConfig(shipped.name, "shipped", shipped.config(), shipped.published(text), shipped.is_text_of_more)
    if not text.strip():
        raise ModelNotFound(
            "the model's name is empty; give an alias, a hub id (owner/name), a folder or a config.json"
        )
    if _exists(path) or text.endswith(".json") or text.startswith((".", "/", "~")):
        return _from_path(path)
    if text.count("/") == 1:
        return _from_hub(text)
    shown = text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}..."
    raise ModelNotFound(f"no model is known as {shown!r}; {_hint(text)}")


def _hint(text: str) -> str:
    members = family(text)
    if len(members) > 1:
        return f"which {text.strip()}? {', '.join(members)}"
    return (
        did_you_mean(plain(text), members or tuple(spellings()), 3)
        or "give a hub id (owner/name), a folder or a config.json"
    )


def without_address(text: str) -> str:
    """The hub id in the address of a model's page on the hub; any other text as it is."""
    match = re.fullmatch(
        r"\s*(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/\s?#]+/[^/\s?#]+)(?:[/?#].*)?\s*", text
    )
    return match[1] if match else text


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~name of a user who does not exist
        return Path(text)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def adapter_file(folder: str | Path) -> Path | None:
    """The ``adapter_config.json`` of a folder that holds adapters and no model, as peft saves it; ``None`` elsewhere.

    As with models, a shipped name comes before a folder.
    """
    text = str(folder)
    path = _path(text)
    file = path / "adapter_config.json"
    if not _exists(file) or _exists(path / "config.json"):
        return None
    return None if _is_shipped_name(text) else file


def _is_shipped_name(text: str) -> bool:
    """Whether it is a shipped model's name as it is written, not only another spelling of it."""
    shipped = spellings().get(plain(text))
    return shipped is not None and text.lower() in map(str.lower, shipped.spellings)


def _from_path(path: Path) -> ModelConfig:
    file = path / "config.json" if path.is_dir() else path
    if path.suffix.lower() == ".gguf" or (path.is_dir() and not _exists(file) and any(path.glob("*.gguf"))):
        raise ModelNotFound(
            f"{path} holds weights as GGUF, which is for inference; give the model that they were made from"
        )
    if not _exists(file):
        where = f"{path} has no config.json" if path.is_dir() else f"{path} does not exist"
        if path.is_dir() and _exists(path / "tokenizer_config.json"):
            where += ", it holds a tokenizer only"
        raise ModelNotFound(f"{where}; give a folder with a config.json, or the file itself")
    folder = str(file.parent) if file.name == "config.json" else None
    return _checked(ModelConfig(_name_of(path), "file", _read_config(file), folder))


def _name_of(path: Path) -> str:
    resolved = path.resolve()
    return (
        resolved.parent.name if resolved.name == "config.json" else resolved.stem if path.is_file() else resolved.name
    )


def _read_config(file: Path) -> dict[str, Any]:
    try:
        if not file.is_file():
            raise InputError(f"{file} is not a file; give a folder with a config.json, or the file itself")
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise InputError(f"{file} is larger than 16 MiB, which no model config is; give the model's config.json")
        settings = json.loads(file.read_text(encoding="utf-8-sig"), object_hook=_special_float)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, or a number of thousands of digits
        raise InputError(f"{file} is not valid JSON ({error}); give the model's config.json") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{file} holds a {type(settings).__name__}, not a JSON object; give the model's config.json")
    return settings


def _special_float(value: dict[str, Any]) -> Any:
    """Infinity as transformers 5 writes it (``configuration_utils.py``, ``_encode_special_floats``)."""
    if set(value) == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
        return float(value["__float__"])
    return value


_COUNTS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size",
    "head_dim", "num_local_experts", "num_experts", "max_position_embeddings", "d_model", "d_ff", "d_kv", "num_heads",
    "num_layers", "num_decoder_layers", "n_embd", "n_head", "n_layer", "n_positions", "n_inner",
)  # fmt: skip
_MAY_DIFFER = ("intermediate_size", "num_key_value_heads", "num_attention_heads")
"""By layer: a list of as many (Gemma-3n, OpenELM, Nemotron)."""
_MAY_BE_NULL = (
    "num_experts",
    "vocab_size",
    "n_inner",
    "num_key_value_heads",
    "head_dim",
    "num_decoder_layers",
    "intermediate_size",
    "num_local_experts",
)
_RATES = (
    "attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "dropout_rate", "dropout", "hidden_dropout",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout", "layerdrop", "summary_first_dropout",
)  # fmt: skip
MAX_LAYERS = 1024
MAX_POSITIONS, MAX_TABLE = 2**24, 2**20
"""Tables of positions are real when a model is built; GPT-J (``n_positions``) has one in each layer."""
MAX_COUNT = 2**31
MAX_EXPERTS, MAX_LABELS = 4096, 2**16
"""Of experts the most that are known are 512, of classes 21 841 (ImageNet-21k)."""


def _checked(model: ModelConfig) -> ModelConfig:
    """The config, if its numbers can be the dimensions of a model.

    Raises:
        InputError: the field that cannot, by name.

    """
    settings = model.settings
    if not isinstance(settings.get("model_type"), str):
        raise InputError(f"the config of {model.name} names no model_type; is it a model's config.json?")
    named, text = settings.get("architectures"), settings.get("text_config")
    if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        raise InputError(f"the config of {model.name} has architectures {named!r}; it must be a list of class names")
    if text is not None and not isinstance(text, dict):
        raise InputError(f"the config of {model.name} has text_config {text!r}; it must be an object")
    for part in (settings, text or {}):
        stored = part.get("quantization_config")
        skipped = stored.get("llm_int8_skip_modules") if isinstance(stored, Mapping) else None
        if skipped is not None and not _are_module_names(skipped):
            raise InputError(
                f"the config of {model.name} has llm_int8_skip_modules {skipped!r:.100}; "
                "it must be a list of module names"
            )
        for name in _RATES:
            rate = part.get(name, 0)
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
                raise InputError(f"the config of {model.name} has {name} {rate!r}; it must be a number from 0 to 1")
        for name in _COUNTS:
            if name not in part or (part[name] is None and name in _MAY_BE_NULL):
                continue
            limit = _limit(name)
            several = part[name] if isinstance(part[name], list) and name in _MAY_DIFFER else [part[name]]
            for value in several:
                whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
                if isinstance(value, bool) or not whole or not 0 < value <= limit:
                    raise InputError(
                        f"the config of {model.name} has {name} {value!r}; it must be a number from 1 to {limit}"
                    )
    for name, value in _integers(settings):
        if value > _limit(name):
            raise InputError(f"the config of {model.name} has {name} {value}; it must be {_limit(name)} at most")
    return model


def _are_module_names(value: Any) -> bool:
    """Whether it is a list of names: transformers takes each for a regular expression, which a stranger wrote."""
    return isinstance(value, list) and all(isinstance(s, str) and re.fullmatch(r"[\w.-]+", s) for s in value)


def _integers(settings: Any) -> Iterator[tuple[str, int]]:
    """Every whole number of a config, of its nested ones too, by its name; families have names of their own."""
    left = [settings]
    while left:
        here = left.pop()
        for name, value in here.items() if isinstance(here, Mapping) else ():
            if isinstance(value, int) and not isinstance(value, bool):
                yield str(name), value
            left.append(value)
        if isinstance(here, list):
            left += here


def _limit(name: str) -> int:
    """What a count of that name may be at most: with room, what models have; a config costs no more than they do."""
    if "layer" in name and "size" not in name:
        return MAX_LAYERS
    if "expert" in name and "size" not in name and "dim" not in name:
        return MAX_EXPERTS
    if "num_labels" in name:
        return MAX_LABELS
    return {"max_position_embeddings": MAX_POSITIONS, "n_positions": MAX_TABLE}.get(name, MAX_COUNT)


def _from_hub(hub_id: str) -> ModelConfig:
    try:
        from huggingface_hub import errors as hub_errors
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    except ImportError:
        raise MissingDependency(
            f"{hub_id} is not shipped with fitplan, and fetching its config needs huggingface_hub; {install('torch')}"
        ) from None
    try:
        cached = try_to_load_from_cache(hub_id, "config.json")
        if isinstance(cached, str):
            return _checked(ModelConfig(hub_id, "cache", _read_config(Path(cached)), hub_id))
        # asked first because it does not retry: hf_hub_download waits half a minute for a hub that is not there
        get_hf_file_metadata(hf_hub_url(hub_id, "config.json"), timeout=HUB_TIMEOUT_SECONDS)
        file = hf_hub_download(hub_id, "config.json", etag_timeout=HUB_TIMEOUT_SECONDS)
    except (hub_errors.LocalEntryNotFoundError, hub_errors.OfflineModeIsEnabled) as error:
        raise _unreachable(hub_id, "offline") from error
    except hub_errors.GatedRepoError:
        raise ModelNotFound(
            f"{hub_id} is gated on the Hugging Face hub; accept its terms there and log in with `hf auth login`, "
            "or give a local config.json"
        ) from None
    except (hub_errors.RepositoryNotFoundError, hub_errors.EntryNotFoundError, hub_errors.HFValidationError):
        raise ModelNotFound(f"the Hugging Face hub has no model {hub_id} with a config.json; check the id") from None
    except Exception as error:  # every transport has its own errors: they all mean that the hub was not reached
        raise _unreachable(hub_id, type(error).__name__) from error
    return _checked(ModelConfig(hub_id, "hub", _read_config(Path(file)), hub_id))


def _unreachable(hub_id: str, reason: str) -> ModelNotFound:
    return ModelNotFound(
        f"the Hugging Face hub could not be reached for {hub_id} ({reason}); "
        "give a local config.json, or the name of a shipped model"
    )
