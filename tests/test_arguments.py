"A wrong argument is one sentence that names it, wherever it is given."

import pytest
import torch

from llm_course.checkpoint import load_model
from llm_course.documents import document_losses
from llm_course.evaluation import sample_stories
from llm_course.gpt import GPT
from llm_course.interface import CharTokenizer
from llm_course.look_inside import attention_maps, logit_lens
from llm_course.model_config import GPTConfig
from llm_course.packing import Batch
from llm_course.pretrained import from_pretrained, to_pretrained
from llm_course.sampling import generate, generate_text
from llm_course.settings import TrainConfig
from llm_course.training import train
from llm_course.widgets import AttentionExplorer, Playground
from llm_course.writing import generate_batch, next_logits

TOKENIZER = CharTokenizer.train(["the cat sat on the mat"])
V = TOKENIZER.vocab_size
ONE = torch.ones(1, 4, dtype=torch.long)


def tiny_model(**changes):
    shape = dict(vocab_size=V, max_seq_len=32, n_layers=1, n_heads=2, d_model=16)
    return GPT(GPTConfig(**shape | changes)).eval()


MODEL = tiny_model()


def train_on(ids, targets):
    return list(train(tiny_model(), [Batch(ids, targets)], TrainConfig(max_steps=1, warmup_steps=1)))


WRONG = {
    "an id too large": (lambda: MODEL(ONE * V), f"ids hold {V}"),
    "a negative id": (lambda: MODEL(-ONE), "ids hold -1"),
    "a list for a tensor": (lambda: MODEL([[1, 2]]), "must be a tensor, not list"),
    "floats for a tensor of ids": (lambda: MODEL(ONE / 2), "whole numbers, torch.int64"),
    "ids of a larger vocabulary": (lambda: train_on(ONE * V, ONE), f"ids hold {V}"),
    "targets of a larger vocabulary": (lambda: train_on(ONE, ONE * V), f"targets hold {V}"),
    "a text for ids": (lambda: generate(MODEL, "hello", 2), "ids must be"),
    "texts for rows": (lambda: generate_batch(MODEL, ["hello", "you"], 2), "ids must be"),
    "floats for ids": (lambda: generate(MODEL, [1.5], 2), "not 1.5"),
    "one stop id": (lambda: generate_text(MODEL, TOKENIZER, "the", 2, stop_ids=5), "stop_ids"),
    "no tokenizer": (lambda: generate_text(MODEL, None, "the", 2), "no tokenizer"),
    "no tokenizer for losses": (lambda: document_losses(MODEL, None, ["the"]), "no tokenizer"),
    "no tokenizer for stories": (lambda: sample_stories(MODEL, None, 1), "no tokenizer"),
    "one text for losses": (lambda: document_losses(MODEL, TOKENIZER, "the cat"), "not one str"),
    "a map of an id too large": (lambda: attention_maps(MODEL, [V]), f"not {V}"),
    "a lens over a text": (lambda: logit_lens(MODEL, "the"), "ids must be"),
    "a text to decode": (lambda: TOKENIZER.decode("abc"), "several whole numbers"),
    "one id to decode": (lambda: TOKENIZER.decode(5), "several whole numbers"),
    "rows to decode": (lambda: TOKENIZER.decode(ONE), "several whole numbers"),
    "a cache of another model": (
        lambda: MODEL(ONE, cache=tiny_model(n_layers=2).make_cache()),
        "2 layers and the model 1",
    ),
    "an unknown device": (lambda: load_model(device="gpu"), "device 'gpu' is unknown"),
}


@pytest.mark.parametrize("what", WRONG)
def test_one_sentence(what):
    act, words = WRONG[what]
    with pytest.raises((ValueError, TypeError), match=words) as error:
        act()
    assert len(str(error.value)) <= 300


@pytest.mark.parametrize("widget", [Playground, AttentionExplorer])
def test_a_widget_says_that_there_is_no_tokenizer(widget):
    assert "There is no tokenizer" in widget(MODEL, None, "the").error.value


def test_a_dtype_may_be_text(tmp_path):
    to_pretrained(tmp_path, tiny_model().bfloat16(), TOKENIZER)
    for dtype, wanted in {"float32": "float32", "auto": "bfloat16", torch.float64: "float64"}.items():
        model, _ = from_pretrained(tmp_path, dtype=dtype)
        assert model.embedding.weight.dtype == getattr(torch, wanted)
    with pytest.raises(ValueError, match="dtype is float99: give one of"):
        from_pretrained(tmp_path, dtype="float99")


def test_logits_are_the_readers_own():
    logits = next_logits(MODEL, [1])
    before = logits.clone()
    scale = torch.nn.Parameter(torch.ones(V))
    (logits * scale).sum().backward()
    assert torch.equal(scale.grad, before)
    logits.mul_(2)
    assert torch.equal(next_logits(MODEL, [1]), before)
    for found in (attention_maps(MODEL, [1, 2]), logit_lens(MODEL, [1, 2])):
        found.mul_(2)
