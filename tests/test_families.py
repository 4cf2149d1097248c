"""Every field of config.json that changes what a model computes is obeyed or refused by name."""

import json
import re

import pytest
import torch
import transformers

from llm_course.more_families import FAMILIES
from llm_course.pretrained import from_pretrained

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SHAPE = dict(
    vocab_size=60,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=None,
    bos_token_id=1,
    eos_token_id=2,
)
GPT2 = dict(vocab_size=60, n_positions=64, n_embd=32, n_layer=3, n_head=4)
MORE = {  # what makes a small model of the family
    "mixtral": dict(num_local_experts=4),
    "qwen3_moe": dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24),
    "gemma2": dict(head_dim=8, sliding_window=7),
    "gemma3_text": dict(head_dim=8, sliding_window=7),
    "qwen3": dict(head_dim=8),
}
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
# fields with values of their own, several each; the others are changed by their type
VALUES = {
    "layer_types": [KINDS, ["full_attention"] * 3],
    "sliding_window": [5, None],
    "hidden_act": ["gelu", "relu", "gelu_pytorch_tanh", "gelu_new"],
    "hidden_activation": ["gelu", "relu", "silu"],
    "activation_function": ["gelu", "relu", "silu", "gelu_pytorch_tanh"],
    "num_attention_heads": [2, 8],
    "n_head": [2, 8],
    "num_key_value_heads": [1, 4, None],
    "head_dim": [16, None],
    "n_inner": [48],
    "no_rope_layers": [[0, 1, 0], [1, 1, 1]],
    "no_rope_layer_interval": [2],
    "mlp_only_layers": [[1]],
    "decoder_sparse_step": [2],
    "max_window_layers": [0, 1],
    "query_pre_attn_scalar": [20],
    "attn_logit_softcapping": [2.0, None],
    "final_logit_softcapping": [2.0, None],
    "num_local_experts": [3],
    "num_experts_per_tok": [1, 3],
    "tie_word_embeddings": [True, False],
    "rope_parameters": [
        dict(rope_type="default", rope_theta=300.0),
        dict(rope_type="linear", rope_theta=300.0, factor=3.0),
        dict(rope_type="default", rope_theta=300.0, partial_rotary_factor=0.5),
        YARN | dict(rope_theta=300.0),
    ],
}
EXTRA = {  # no fields of the classes, and still obeyed by some
    "rope_theta": [300.0],
    "rope_scaling": [dict(type="linear", factor=3.0), YARN],
    "partial_rotary_factor": [0.5],
    "original_max_position_embeddings": [8],
    "rope_local_base_freq": [40.0],
    "sliding_window_pattern": [2],
    "head_dim": [16],
    "layer_types": [KINDS],
    "num_experts": [3],
}
WITH = {  # what a field needs so that it matters
    "original_max_position_embeddings": dict(rope_scaling=YARN),
    "sliding_window": dict(use_sliding_window=True),
    "max_window_layers": dict(use_sliding_window=True, sliding_window=5),
    "layer_types": dict(use_sliding_window=True, sliding_window=5),
    "use_sliding_window": dict(sliding_window=5),
}
NO_FIELDS = {"model_type", "architectures", "transformers_version", "dtype", "_name_or_path"}


def changed(name, value):
    "Other values of a field, by its type."
    if name in VALUES:
        return VALUES[name]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [2 * value]
    if isinstance(value, float):
        return [3 * value + 0.1]
    return []


def compared(folder, kind, hf):
    "How far our logits are from theirs; None where they cannot make such a model."
    try:
        config = transformers.AutoConfig.for_model(kind, **json.loads(json.dumps(hf)))
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        torch.manual_seed(0)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.normal_(0, 0.3)
                if re.search(r"norm|ln_", name) and "gemma" not in kind:
                    p.add_(1.0)
            ids = torch.randint(1, config.vocab_size, (2, 30))
            theirs = model.eval()(ids).logits
        model.save_pretrained(folder)
    except Exception:
        return None
    (folder / "config.json").write_text(json.dumps(hf | {"model_type": kind}))
    ours, _ = from_pretrained(folder)
    with torch.no_grad():
        return ((ours(ids) - theirs).abs().max() / theirs.std()).item()


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_each_field_is_obeyed_or_refused_by_name(kind, tmp_path):
    base = (GPT2 if kind == "gpt2" else SHAPE) | MORE.get(kind, {})
    fields = transformers.AutoConfig.for_model(kind, **base).to_dict()
    trials = [(name, value) for name in fields for value in changed(name, fields[name])]
    trials += [(name, value) for name, values in EXTRA.items() for value in values]
    followed = []
    refused = []
    for name, value in trials:
        if name in NO_FIELDS:
            continue
        hf = base | WITH.get(name, {}) | {name: value}
        try:
            difference = compared(tmp_path, kind, hf)
        except ValueError as error:
            refused.append(f"{name}={value!r}: {error}")
            continue
        if difference is not None:
            assert difference < 5e-5, f"{name}={value!r}: {difference:.1e}"
            followed.append(name)
    assert len(followed) > 20 and refused
    for said in refused:
        print(said)
