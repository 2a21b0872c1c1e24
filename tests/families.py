"""Small models of each family: real configs, tiny numbers."""

from typing import Any

_TINY = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 2, "vocab_size": 128, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


def _tiny(model_type: str, architecture: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [architecture], **_TINY, **changes}


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _tiny("llama", "LlamaForCausalLM"),
    "mistral": _tiny("mistral", "MistralForCausalLM", sliding_window=8),
    "qwen2": _tiny("qwen2", "Qwen2ForCausalLM", tie_word_embeddings=True),
    "qwen3": _tiny("qwen3", "Qwen3ForCausalLM", head_dim=16),
    "gemma2": _tiny("gemma2", "Gemma2ForCausalLM", head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    "gemma3": _tiny("gemma3_text", "Gemma3ForCausalLM", head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    "phi3": _tiny("phi3", "Phi3ForCausalLM"),
    "gpt2": {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 64, "n_head": 4, "n_layer": 2,
        "n_positions": 64, "vocab_size": 128, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        "bos_token_id": 1, "eos_token_id": 2,
    },
    "gpt_neox": _tiny("gpt_neox", "GPTNeoXForCausalLM", rotary_pct=0.25),
    "falcon": _tiny("falcon", "FalconForCausalLM", multi_query=True, parallel_attn=True, bias=False),
    "olmo2": _tiny("olmo2", "Olmo2ForCausalLM"),
    "mixtral": _tiny("mixtral", "MixtralForCausalLM", **_MOE),
    "qwen3_moe": _tiny("qwen3_moe", "Qwen3MoeForCausalLM", head_dim=16, **_MOE),
    "gpt_oss": _tiny("gpt_oss", "GptOssForCausalLM", head_dim=16, sliding_window=8, **_MOE),
    "t5": {
        "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": 64, "d_ff": 96, "d_kv": 16,
        "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2, "vocab_size": 128, "dropout_rate": 0.0,
        "is_encoder_decoder": True, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
    },
    "roberta": _tiny(
        "roberta", "RobertaForMaskedLM", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, type_vocab_size=1
    ),
    "deberta_v2": _tiny(
        "deberta-v2", "DebertaV2ForMaskedLM", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, type_vocab_size=0,
    ),
}  # fmt: skip


def first_difference(ours: list[Any], theirs: list[Any]) -> Any:
    """Where two long lists part: place and both items, or ``None``. A diff of whole lists would take minutes."""
    for place, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return place, one, other
    return None if len(ours) == len(theirs) else (min(len(ours), len(theirs)), len(ours), len(theirs))
