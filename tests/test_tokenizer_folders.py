"""Other people's tokenizer folders, of six kinds: what `transformers` says of a text, we say too."""

import io
import json
import pickle
from types import SimpleNamespace

import pytest
import sentencepiece
from tokenizers import AddedToken, decoders, models, normalizers, processors
from tokenizers import Tokenizer as Library
from transformers import AutoTokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from llm_course.bpe import BPETokenizer
from llm_course.evaluation import sample_stories
from llm_course.foreign import HFTokenizer
from llm_course.formats import fingerprint, load_tokenizer, to_hf
from llm_course.gpt import GPT
from llm_course.model_config import GPTConfig
from llm_course.packing import tokenize_documents
from llm_course.pretrained import from_pretrained, to_pretrained
from llm_course.sampling import generate_text
from llm_course.text_marks import TextMarks, named_tokens
from llm_course.tokenfiles import TokenDataset, write_tokens
from llm_course.writing import document_ids, prompt_ids

TEXTS = ["once upon", " a cat  sat\n", "é 👋 I'll be 12345", "Once. Upon , a time"]
CORPUS = ["once upon a time the cat sat on the mat, hello 12345 I'll go"] * 20
CHATML = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def write_json(path, facts):
    path.write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")


def write_byte_level(folder, special, pattern, in_front=None):
    "A byte-level tokenizer.json, as of GPT-2, Llama 3 and Qwen."
    tokenizer = BPETokenizer.train(CORPUS, 280 + len(special), special, pattern)
    facts = json.loads(to_hf(tokenizer, folder / "tokenizer.json").read_text(encoding="utf-8"))
    facts["post_processor"] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": False,
        "use_regex": True,
    }
    if in_front is not None:
        processor = processors.TemplateProcessing(
            f"{in_front} $A", f"{in_front} $A {in_front} $B:1", [(in_front, 280)]
        )
        template = json.loads(processor.__getstate__())
        parts = [facts["post_processor"], template]
        facts["post_processor"] = {"type": "Sequence", "processors": parts}
    write_json(folder / "tokenizer.json", facts)
    return tokenizer.vocab_size


def gpt2(folder):
    n = write_byte_level(folder, ["<|endoftext|>"], "gpt2")
    write_json(folder / "tokenizer_config.json", {"model_max_length": 1024})
    write_json(folder / "config.json", dict(model_type="gpt2", bos_token_id=280, eos_token_id=280))
    return n, TextMarks(end_ids=(280,), bos_id=280)


LLAMA_VOCAB = {"<unk>": 0, "<s>": 1, "</s>": 2}
LLAMA_VOCAB |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
LLAMA_VOCAB |= {word: 259 + i for i, word in enumerate("▁abcdefghijlmnopqrstuvwxyz")}
LLAMA_VOCAB |= {"on": 285, "▁a": 286, "at": 287}


def llama2(folder, **more):
    "▁ for a space, byte fallback, `<s>` by the post-processor."
    model = models.BPE(
        LLAMA_VOCAB,
        [("o", "n"), ("▁", "a"), ("a", "t")],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = Library(model)
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(spaces)
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)])
    special = [AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    tokenizer.add_special_tokens(special)
    single, pair = "<s> $A", "<s> $A <s>:1 $B:1"
    tokenizer.post_processor = processors.TemplateProcessing(single, pair, [("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    flags = dict(lstrip=False, normalized=False, rstrip=False, single_word=False)
    facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": "<s>", **flags},
        "eos_token": {"__type": "AddedToken", "content": "</s>", **flags},
        "unk_token": "<unk>",
    }
    write_json(folder / "tokenizer_config.json", facts | more)
    write_json(folder / "config.json", dict(model_type="llama", bos_token_id=1, eos_token_id=2))
    return 288, TextMarks(begin_ids=(1,), end_ids=(2,), unk_id=0, bos_id=1)


def mistral(folder):
    "As Llama 2's, with several chat templates, and a pad token in another file."
    templates = [dict(name="default", template="{{ bos_token }}"), dict(name="tools", template="t")]
    n, marks = llama2(folder, chat_template=templates)
    names = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>")
    write_json(folder / "special_tokens_map.json", names)
    write_json(folder / "config.json", dict(model_type="mistral", bos_token_id=1, eos_token_id=2))
    more = dict(pad_id=2, chat_template="{{ bos_token }}", more_templates={"tools": "t"})
    return n, TextMarks(**{**marks.as_dict(), **more})


def llama3(folder):
    "Several ends, a begin token, and a template in a file of its own."
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
    n = write_byte_level(folder, special, "gpt4", in_front="<|begin_of_text|>")
    names = dict(bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
    facts = names | {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "old"}
    write_json(folder / "tokenizer_config.json", facts)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}new")
    write_json(folder / "config.json", dict(model_type="llama", eos_token_id=281))
    ends = dict(bos_token_id=280, eos_token_id=[281, 282, 283])
    write_json(folder / "generation_config.json", ends)
    chat = "{{ bos_token }}new"
    return n, TextMarks((280,), (283, 281, 282), chat_template=chat, bos_id=280)


def qwen(folder, model_type):
    "No begin, a pad token that is not the end that is written, a chat template."
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    n = write_byte_level(folder, special, "gpt4")
    facts = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    digits = facts["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    digits["Regex"] = PRETOKENIZE_REGEX  # each digit is a piece of its own
    write_json(folder / "tokenizer.json", facts | {"normalizer": {"type": "NFC"}})
    facts = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "chat_template": CHATML,
    }
    write_json(folder / "tokenizer_config.json", facts)
    ids = dict(model_type=model_type, bos_token_id=280, eos_token_id=282, vocab_size=320)
    write_json(folder / "config.json", ids)
    ends = dict(eos_token_id=[282, 280], pad_token_id=280, bos_token_id=None)
    write_json(folder / "generation_config.json", ends)
    return n, TextMarks(end_ids=(282, 280), pad_id=280, chat_template=CHATML)


def sentencepiece_alone(folder):
    "As Llama 2's chat models of old: tokenizer.model, and tokens that were added beside it."
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["once upon a time", "the cat sat"] * 50),
        model_writer=model,
        vocab_size=290,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
        unk_id=0,
        bos_id=1,
        eos_id=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    n = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
    write_json(folder / "added_tokens.json", {"<|im_end|>": n + 1, "<|im_start|>": n})
    facts = dict(bos_token="<s>", eos_token="<|im_end|>", unk_token="<unk>", add_bos_token=True)
    write_json(folder / "tokenizer_config.json", facts)
    write_json(folder / "config.json", dict(model_type="llama", bos_token_id=1, eos_token_id=2))
    return n + 2, TextMarks(begin_ids=(1,), end_ids=(n + 1, 2), unk_id=0, bos_id=1)


KINDS = {
    "GPT-2": gpt2,
    "Llama 2": llama2,
    "Llama 2, sentencepiece": sentencepiece_alone,
    "Llama 3": llama3,
    "Mistral": mistral,
    "Qwen 2": lambda folder: qwen(folder, "qwen2"),
    "Qwen 3": lambda folder: qwen(folder, "qwen3"),
}


@pytest.fixture(params=KINDS, scope="module")
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder")
    n, marks = KINDS[request.param](folder)
    return SimpleNamespace(folder=folder, n=n, marks=marks)


def model_of(n_rows):
    return GPT(GPTConfig(vocab_size=n_rows, max_seq_len=64, n_layers=1, n_heads=2, d_model=16))


def agrees(ours, folder, n_rows):
    "Whether prompts, ids, texts and marks are those of `transformers`."
    theirs = AutoTokenizer.from_pretrained(folder)
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=n_rows))
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == ids
        assert prompt_ids(model, ours, text) == theirs(text)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids)
    marks = ours.marks
    pairs = dict(bos=marks.bos_id, eos=ours.eos_id, pad=marks.pad_id, unk=marks.unk_id)
    named = {name: getattr(theirs, f"{name}_token_id") for name in named_tokens(folder)}
    assert named == {name: pairs[name] for name in named}
    template = theirs.chat_template
    assert marks.chat_template == (template["default"] if isinstance(template, dict) else template)
    return True


def test_marks_prompts_and_documents(made):
    ours = load_tokenizer(made.folder)
    assert ours.vocab_size == made.n and ours.marks == made.marks
    assert agrees(ours, made.folder, made.n)
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=made.n))
    start = made.marks.begin_ids or made.marks.end_ids[:1]  # GPT-2, Qwen: an end between texts
    assert prompt_ids(model, ours) == list(start)
    whole = [*start, *ours.encode(TEXTS[0]), made.marks.end_ids[0]]
    assert document_ids(model, ours, TEXTS[0]) == whole
    assert tokenize_documents(TEXTS[:1], ours)[0].tolist() == whole


def test_saved_and_sent(made, tmp_path):
    ours = load_tokenizer(made.folder)
    ours.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again == ours == pickle.loads(pickle.dumps(ours))
    assert again.marks == ours.marks and fingerprint(again) == fingerprint(ours)
    write_tokens(tmp_path / "tokens", TEXTS, ours)
    written = TokenDataset(tmp_path / "tokens", tokenizer=again)
    assert written[1].tolist() == tokenize_documents(TEXTS, ours)[1].tolist()


def test_exported_and_read_again(made, tmp_path):
    ours = load_tokenizer(made.folder)
    folder = to_pretrained(tmp_path / "out", model_of(made.n), ours)
    assert agrees(ours, folder, made.n)
    assert from_pretrained(folder)[1] == ours
    (folder / "tokenizer_kind.json").unlink()  # as from somebody who does not know this course
    again = from_pretrained(folder)[1]
    assert again.marks == ours.marks
    for name in ("config.json", "generation_config.json"):
        facts = json.loads((folder / name).read_text())
        ends = list(ours.marks.end_ids)
        assert facts["eos_token_id"] == (ends if len(ends) > 1 else ends[0])
        assert facts["pad_token_id"] == ours.marks.pad_id


def test_every_end_ends_a_text():
    tokenizer = BPETokenizer.train(CORPUS, 270)
    tokenizer.marks = TextMarks(end_ids=range(269))  # all that a model may draw but one
    model = model_of(269)
    assert list(generate_text(model, tokenizer, "once", 9)) == []
    assert sample_stories(model, tokenizer, 2) == ["", ""]


def test_a_token_too_many(tmp_path):
    n, _ = llama2(tmp_path, pad_token="[PAD]")
    tokenizer = load_tokenizer(tmp_path)  # transformers adds it at the end, too
    assert tokenizer.vocab_size == n + 1 and tokenizer.marks.pad_id == n
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token_id == n
    model = model_of(n)
    assert prompt_ids(model, tokenizer, "a cat")[0] == 1
    with pytest.raises(ValueError, match=f"tokens and the model {n - 1}: load the tokenizer that"):
        prompt_ids(model_of(n - 1), tokenizer)
    folder = to_pretrained(tmp_path / "out", model, tokenizer)
    assert from_pretrained(folder)[1] == tokenizer


def test_a_text_with_a_token_too_many(tmp_path):
    n, _ = llama2(tmp_path)
    library = Library.from_file(str(tmp_path / "tokenizer.json"))
    library.add_tokens(["catnip"])  # no special token: it is found in every text
    tokenizer = HFTokenizer(library, "</s>")
    assert prompt_ids(model_of(n), tokenizer, "a cat")
    with pytest.raises(ValueError, match=f"'catnip', token {n}, .* knows {n}: leave it out"):
        prompt_ids(model_of(n), tokenizer, "a catnip")


def test_the_course_s_own_tokenizers_are_as_before(tmp_path):
    tokenizer = BPETokenizer.train(CORPUS, 270)
    facts = json.loads(tokenizer.files()["tokenizer_kind.json"])
    assert facts["format"] == 3 and "marks" not in facts
    assert tokenizer.marks == TextMarks(begin_ids=(269,), end_ids=(269,), bos_id=269)
    to_hf(tokenizer, tmp_path / "tokenizer.json")
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "<|endoftext|>"})
    assert load_tokenizer(tmp_path).eos_id == 269


def test_other_templates_leave_the_ids(tmp_path):
    tokenizer = BPETokenizer.train(CORPUS, 270)
    tokenizer.marks = TextMarks(end_ids=(269,), chat_template="old")
    before = fingerprint(tokenizer)
    tokenizer.marks = TextMarks(end_ids=(269, 3), chat_template="new")
    assert fingerprint(tokenizer) == before
    tokenizer.marks = TextMarks(begin_ids=(3,), end_ids=(269,))
    assert fingerprint(tokenizer) != before
    assert load_tokenizer(tokenizer.save(tmp_path)).marks == tokenizer.marks


def test_special_tokens_keep_their_flags(tmp_path):
    llama2(tmp_path)
    library = Library.from_file(str(tmp_path / "tokenizer.json"))
    library.add_special_tokens([AddedToken("<|end|>", rstrip=True, normalized=False)])  # as Phi-3's
    library.save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "<|end|>", "unk_token": "<unk>"})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_id == 288
    assert tokenizer.encode("a cat<|end|> \n") == tokenizer.encode("a cat<|end|>")
