"A conversation reaches a model through every door, and other libraries' folders are models too."

import pytest
import torch
from tokenizers import AddedToken
from tokenizers import Tokenizer as Library

from llm_course.bpe import BPETokenizer
from llm_course.chat import chat_ids
from llm_course.checkpoint import bundled_model, load_model
from llm_course.cli import llm_generate
from llm_course.foreign import HFTokenizer
from llm_course.formats import to_hf
from llm_course.gpt import GPT
from llm_course.model_config import GPTConfig
from llm_course.pretrained import to_pretrained
from llm_course.sampling import generate, generate_text
from llm_course.text_marks import TextMarks
from llm_course.widgets import Playground

TALK = [{"role": "user", "content": "the cat <|end|>"}]
TEMPLATE = "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"


@pytest.fixture(scope="module")
def chatty():
    "A model, and a tokenizer with a chat template."
    special = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"]
    tokenizer = BPETokenizer.train(["the cat sat on the mat"] * 50, 270, special_tokens=special)
    end = tokenizer.special_ids["<|end|>"]
    tokenizer.marks = TextMarks(end_ids=(end,), chat_template=TEMPLATE)
    torch.manual_seed(0)
    shape = dict(vocab_size=270, max_seq_len=64, n_layers=1, n_heads=2, d_model=32)
    return GPT(GPTConfig(**shape)).eval(), tokenizer


def seeded():
    return torch.Generator().manual_seed(5)


def test_an_answer_follows_the_conversation(chatty):
    model, tokenizer = chatty
    ids = chat_ids(tokenizer, TALK)
    end = tokenizer.marks.eos_id
    assert ids.count(end) == 1
    written = list(generate(model, ids, 20, stop_ids=[end], generator=seeded()))
    whole = tokenizer.decode(ids + written)
    text = "".join(generate_text(model, tokenizer, TALK, 20, generator=seeded()))
    assert tokenizer.decode(ids) + text == whole


def test_the_playground_can_mean_a_conversation(chatty):
    model, tokenizer = chatty
    play = Playground(model, tokenizer, TALK[0]["content"], 5)
    play.controls["chat"].value = True
    play.write()
    play.wait()
    assert not play.error.value
    assert play.drafts.now.ids == chat_ids(tokenizer, TALK)
    assert play.output.prompt == "<|user|>the cat <|end|><|end|><|assistant|>"


def test_a_command_writes_with_an_exported_model(chatty, tmp_path, capsys):
    model, tokenizer = chatty
    to_pretrained(tmp_path / "hf", model, tokenizer)
    words = [TALK[0]["content"], "--model", str(tmp_path / "hf")]
    words += ["sample.seed=5", "sample.max_new_tokens=20", "sample.temperature=1"]
    for chat in ([], ["--chat"]):
        assert llm_generate([*words, *chat]) == 0
        prompt = TALK if chat else TALK[0]["content"]
        pieces = generate_text(model, tokenizer, prompt, 20, generator=seeded())
        said = "" if chat else TALK[0]["content"]
        assert capsys.readouterr().out == said + "".join(pieces) + "\n"
    assert llm_generate([*words, "model.n_layers=3"]) == 2
    assert "has model.n_layers=1; leave it out" in capsys.readouterr().err


def test_the_bundled_model_gives_the_same_text_from_its_export(tmp_path, capsys):
    model, tokenizer = load_model()
    to_pretrained(tmp_path, model, tokenizer)
    texts = []
    for folder in (bundled_model(), tmp_path):
        words = ["Once", "--model", str(folder), "sample.max_new_tokens=20"]
        assert llm_generate([*words, "sample.temperature=0"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_marks_that_take_a_space_keep_to_it_beside_hostile_words(chatty, tmp_path):
    library = Library.from_file(str(to_hf(chatty[1], tmp_path / "tokenizer.json")))
    marks = ["<|user|>", "<|assistant|>", "<|end|>"]
    library.add_special_tokens([AddedToken(mark, rstrip=True, special=True) for mark in marks])
    tokenizer = HFTokenizer(library, "<|end|>")
    lines = TEMPLATE.replace("|>", "|>\n")
    tokenizer.marks = TextMarks(end_ids=tokenizer.marks.end_ids, chat_template=lines)
    said = [TALK[0] | {"content": "the cat"}, *TALK]
    ids = chat_ids(tokenizer, said)
    first = tokenizer.encode("<|user|>the cat<|end|><|user|>")
    assert ids[: len(first)] == first
    assert tokenizer.decode(ids) == "<|user|>the cat<|end|><|user|>\nthe cat <|end|><|end|><|assistant|>"
