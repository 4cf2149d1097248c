"""Build a language model from nothing: what the lessons export, imported when it is asked for."""

__version__ = "0.3.0"

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers: the same names as below
    from .attention import rope as rope
    from .attention import scaled_dot_product_attention as scaled_dot_product_attention
    from .attention import softmax as softmax
    from .batching import Engine as Engine
    from .block import Block as Block
    from .block import MLP as MLP
    from .block import RMSNorm as RMSNorm
    from .bpe import BPETokenizer as BPETokenizer
    from .cache import KVCache as KVCache
    from .checkpoint import load_checkpoint as load_checkpoint
    from .checkpoint import load_model as load_model
    from .checkpoint import save_checkpoint as save_checkpoint
    from .clipping import clip_grad_norm as clip_grad_norm
    from .corpus import Tales as Tales
    from .dataloader import Batches as Batches
    from .decoding import beam_search as beam_search
    from .encoder_decoder import EncoderDecoder as EncoderDecoder
    from .engine import SamplingParams as SamplingParams
    from .fast import optimize_for_decoding as optimize_for_decoding
    from .fast import quantize_int8 as quantize_int8
    from .foreign import HFTokenizer as HFTokenizer
    from .foreign import SentencePieceTokenizer as SentencePieceTokenizer
    from .foreign_bpe import from_gpt2 as from_gpt2
    from .foreign_bpe import from_tiktoken as from_tiktoken
    from .foreign_bpe import to_tiktoken as to_tiktoken
    from .formats import load_tokenizer as load_tokenizer
    from .gpt import GPT as GPT
    from .heads import causal_mask as causal_mask
    from .heads import MultiHeadAttention as MultiHeadAttention
    from .interface import CharTokenizer as CharTokenizer
    from .learning import AdamW as AdamW
    from .learning import cross_entropy as cross_entropy
    from .measure import evaluate as evaluate
    from .model_config import GPTConfig as GPTConfig
    from .optim import make_optimizer as make_optimizer
    from .optim import Muon as Muon
    from .packing import Batch as Batch
    from .parts import LayerNorm as LayerNorm
    from .parts import SwiGLU as SwiGLU
    from .pretrained import from_pretrained as from_pretrained
    from .pretrained import to_pretrained as to_pretrained
    from .sampling import generate as generate
    from .sampling import generate_text as generate_text
    from .schedules import cosine_schedule as cosine_schedule
    from .settings import TrainConfig as TrainConfig
    from .sources import load_documents as load_documents
    from .streams import decode_stream as decode_stream
    from .throughput import optimize_for_training as optimize_for_training
    from .tokenfiles import TokenDataset as TokenDataset
    from .tokenfiles import write_ids as write_ids
    from .tokenfiles import write_tokens as write_tokens
    from .training import train as train
    from .writing import generate_batch as generate_batch

# Where each public name stands. Its module, and torch with it, is loaded when the name is used.
_HOME = {
    "Tales": "corpus",
    "load_documents": "sources",
    "CharTokenizer": "interface",
    "decode_stream": "streams",
    "BPETokenizer": "bpe",
    "from_gpt2": "foreign_bpe",
    "from_tiktoken": "foreign_bpe",
    "to_tiktoken": "foreign_bpe",
    "load_tokenizer": "formats",
    "HFTokenizer": "foreign",
    "SentencePieceTokenizer": "foreign",
    "AdamW": "learning",
    "cross_entropy": "learning",
    "clip_grad_norm": "clipping",
    "Muon": "optim",
    "cosine_schedule": "schedules",
    "make_optimizer": "optim",
    "MultiHeadAttention": "heads",
    "causal_mask": "heads",
    "rope": "attention",
    "scaled_dot_product_attention": "attention",
    "softmax": "attention",
    "KVCache": "cache",
    "Block": "block",
    "LayerNorm": "parts",
    "MLP": "block",
    "RMSNorm": "block",
    "SwiGLU": "parts",
    "GPT": "gpt",
    "EncoderDecoder": "encoder_decoder",
    "GPTConfig": "model_config",
    "Batch": "packing",
    "Batches": "dataloader",
    "TokenDataset": "tokenfiles",
    "write_ids": "tokenfiles",
    "write_tokens": "tokenfiles",
    "TrainConfig": "settings",
    "evaluate": "measure",
    "train": "training",
    "optimize_for_training": "throughput",
    "load_checkpoint": "checkpoint",
    "load_model": "checkpoint",
    "save_checkpoint": "checkpoint",
    "SamplingParams": "engine",
    "Engine": "batching",
    "generate": "sampling",
    "generate_batch": "writing",
    "generate_text": "sampling",
    "beam_search": "decoding",
    "optimize_for_decoding": "fast",
    "quantize_int8": "fast",
    "from_pretrained": "pretrained",
    "to_pretrained": "pretrained",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    "A public name, from the module in which it stands; AttributeError for any other."
    if name not in _HOME:
        raise AttributeError(f"module 'llm_course' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    "All public names, loaded or not."
    return sorted({*globals(), *_HOME})
