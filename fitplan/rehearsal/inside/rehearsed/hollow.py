"""Hollow checkpoints: a model that is not on this machine is found, with the right tensors and no content.

The config is one that ships with fitplan, or that is in the Hugging Face cache. The weights are sparse files: they take
no room on the disk, and their pages are never read into memory. The tokenizer is a stand-in that has the model's
vocabulary and makes a token of every four characters.
"""

import json
import os
import struct
import sys
from contextlib import contextmanager

CHARACTERS_A_TOKEN = 4
"""About what byte-pair vocabularies make of English text."""
SHARD_BYTES = 5 << 30
"""A file is mapped whole, and Linux refuses one mapping that is larger than the machine's memory."""

_made = {}


def stand_in(plan):
    """From here on the hub is not asked; what is not in the cache is made."""
    import huggingface_hub
    from huggingface_hub import file_download

    configs = plan.get("models", {})
    snapshot, download, lookup = (
        huggingface_hub.snapshot_download,
        huggingface_hub.hf_hub_download,
        file_download.try_to_load_from_cache,
    )

    def made(repo):
        repo = str(repo)
        if repo not in _made and repo in configs and not _is_cached(lookup, repo):
            _made[repo] = _make(repo, configs[repo])
        return _made.get(repo)

    def snapshot_download(repo_id, *args, **kwargs):
        return made(repo_id) or snapshot(repo_id, *args, **kwargs)

    def hf_hub_download(repo_id, filename, *args, **kwargs):
        folder = made(repo_id)
        if folder is None:
            return download(repo_id, filename, *args, **kwargs)
        path = os.path.join(folder, kwargs.get("subfolder") or "", filename)
        if not os.path.exists(path):
            from huggingface_hub.errors import LocalEntryNotFoundError

            raise LocalEntryNotFoundError("%s is not in the hollow checkpoint of %s" % (filename, repo_id))
        return path

    def try_to_load_from_cache(repo_id, filename, *args, **kwargs):
        folder = made(repo_id)
        if folder is None:
            return lookup(repo_id, filename, *args, **kwargs)
        path = os.path.join(folder, filename)
        return path if os.path.exists(path) else None

    for module, name, function in (
        (huggingface_hub, "snapshot_download", snapshot_download),
        (huggingface_hub, "hf_hub_download", hf_hub_download),
        (huggingface_hub, "try_to_load_from_cache", try_to_load_from_cache),
        (file_download, "hf_hub_download", hf_hub_download),
        (file_download, "try_to_load_from_cache", try_to_load_from_cache),
    ):
        setattr(module, name, function)


def _is_cached(lookup, repo):
    """Whether weights of the model lie in the user's cache."""
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    return any(isinstance(lookup(repo, name), str) for name in names)


def _make(repo, config_file):
    folder = os.path.join(os.environ["FITPLAN_REHEARSAL_FOLDER"], "models", str(os.getpid()), repo.replace("/", "--"))
    os.makedirs(folder, exist_ok=True)
    with open(config_file, encoding="utf-8") as file:
        settings = json.load(file)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(settings, file)
    write_weights(folder)
    write_tokenizer(folder, settings)
    return folder


def write_weights(folder):
    """Safetensors files of the tensors that the model has, without their content."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    dtype = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or torch.bfloat16
    named = [getattr(transformers, name, None) for name in config.architectures or ()]
    kind = next((one for one in named if one is not None), None)
    with torch.device("meta"), _undivided():
        model = kind._from_config(config) if kind else transformers.AutoModelForCausalLM.from_config(config)
    tied = set(getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ())
    if not getattr(config, "tie_word_embeddings", False):
        tied = set()
    shards, sizes = [{}], [0]
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        kept = dtype if tensor.is_floating_point() else tensor.dtype
        size = tensor.numel() * kept.itemsize
        if shards[-1] and sizes[-1] + size > SHARD_BYTES:
            shards.append({})
            sizes.append(0)
        offsets = [sizes[-1], sizes[-1] + size]
        shards[-1][name] = {"dtype": _NAMES[str(kept)], "shape": list(tensor.shape), "data_offsets": offsets}
        sizes[-1] += size
    if len(shards) == 1:
        _write_shard(os.path.join(folder, "model.safetensors"), shards[0], sizes[0])
        return
    places = {}
    for number, (shard, size) in enumerate(zip(shards, sizes)):
        file = "model-%05d-of-%05d.safetensors" % (number + 1, len(shards))
        _write_shard(os.path.join(folder, file), shard, size)
        places.update(dict.fromkeys(shard, file))
    with open(os.path.join(folder, "model.safetensors.index.json"), "w", encoding="utf-8") as file:
        json.dump({"metadata": {"total_size": sum(sizes)}, "weight_map": places}, file)


@contextmanager
def _undivided():
    """Where ZeRO-3 is configured, transformers divides every model that it builds; this one is only looked at."""
    module = sys.modules.get("transformers.integrations.deepspeed")
    config = getattr(module, "_hf_deepspeed_config_weak_ref", None)
    if config is not None:
        module._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        if config is not None:
            module._hf_deepspeed_config_weak_ref = config


def _write_shard(path, tensors, size):
    text = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)


_NAMES = {
    "torch.bfloat16": "BF16",
    "torch.float16": "F16",
    "torch.float32": "F32",
    "torch.float64": "F64",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}

_CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% generation %}{{ message['content'] }}{% endgeneration %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_tokenizer(folder, settings):
    """A tokenizer with the model's vocabulary size."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    size = (settings.get("text_config") or settings).get("vocab_size") or settings.get("vocab_size") or 32000
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    vocabulary = {name: number for number, name in enumerate(special)}
    vocabulary.update({"token%d" % number: number for number in range(len(special), size)})
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pieces = Regex(r"[\s\S]{1,%d}" % CHARACTERS_A_TOKEN)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.chat_template = _CHAT
    fast.save_pretrained(folder)
