"What takes too long for a lesson: the tokenizer's promises on large input."

import random
import tracemalloc
import unicodedata
from collections import deque

import pytest
import tiktoken

from llm_course.bpe import BPETokenizer
from llm_course.foreign_bpe import from_tiktoken, to_tiktoken
from llm_course.formats import load_tokenizer
from llm_course.sources import load_documents
from llm_course.texts import count_pieces


def half_a_million_characters() -> str:
    return "".join(load_documents("stdlib", "train"))[:500_000]


def test_encode_iterable_reads_20_mb_in_less_than_one():
    half = half_a_million_characters()
    tokenizer = BPETokenizer.train([half], 2048)
    deque(tokenizer.encode_iterable([half]), maxlen=0)  # now tiktoken has its table
    lines = half.splitlines(keepends=True)
    texts = [half * 20, *[half] * 10, *lines * 10]
    tracemalloc.start()
    deque(tokenizer.encode_iterable(texts), maxlen=0)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(map(len, texts)) >= 20e6 and used < 1e6


def test_counting_needs_memory_for_the_different_pieces_only():
    half = half_a_million_characters()
    tracemalloc.start()
    pieces = count_pieces((f"{half} {i}" for i in range(30)), "gpt2", [], processes=1)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(pieces.values()) > 3e6 and used < 10e6


def test_large_input_is_counted_by_processes():
    "More than the eight batches that are counted alone; the merges that one process finds."
    texts = list(load_documents("stdlib")) * 4
    assert sum(map(len, texts)) > 8 * (1 << 22)
    assert BPETokenizer.train(texts, 600) == BPETokenizer.train(texts, 600, processes=1)


def test_whole_files_keep_the_ids_of_their_pieces():
    "Cut into blocks, joined with others, in two threads: always the ids of one text alone."
    texts = list(load_documents("stdlib", "valid"))[:40]
    tokenizer = BPETokenizer.train(texts, 1000, pattern="gpt4")
    whole = "".join(texts)
    plain = tokenizer._encode_plainly(whole)
    assert tokenizer.encode_ordinary(whole) == plain
    assert next(tokenizer.encode_batch([whole])).tolist() == plain
    lines = whole.splitlines(keepends=True)
    each = [tokenizer._encode_plainly(line) for line in lines]
    assert [ids.tolist() for ids in tokenizer.encode_batch(lines, threads=2)] == each


def random_strings(seed, n):
    "Strings of words, blanks, numbers, special tokens and characters of all kinds."
    rng = random.Random(seed)
    assigned = [c for c in map(chr, range(0x30000)) if unicodedata.category(c)[0] != "C"]
    words = [" the", "'ll", "'RE", " 12345", "\n\n", "  ", "\t", "\r\n", "\u3000", "e\u0301", "👩‍👧"]
    words += ["<|endoftext|>", "<|endofprompt|>", "<|fim_prefix|>"]
    for _ in range(n):
        parts = [rng.choice(rng.choice([words, assigned])) for _ in range(rng.randint(0, 30))]
        yield "".join(parts)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r50k_base", "p50k_base", "cl100k_base", "o200k_base"])
def test_the_encodings_of_openai(name, monkeypatch, tmp_path):
    "Where tiktoken has kept their files (see its TIKTOKEN_CACHE_DIR); nothing is fetched."

    def absent(path):
        pytest.skip(f"tiktoken has not kept {path}")

    monkeypatch.setattr("tiktoken.load.read_file", absent)
    theirs = tiktoken.get_encoding(name)
    ours = from_tiktoken(name)
    back = to_tiktoken(ours)
    assert ours.vocab_size == theirs.n_vocab == back.n_vocab
    assert ours.gaps == set(range(theirs.n_vocab)) - {*ours.vocab}
    assert load_tokenizer(ours.save(tmp_path)) == ours
    texts = [*random_strings(1, 20_000), *list(load_documents("stdlib", "valid"))[:30]]
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        plain = theirs.encode_ordinary(text)
        assert ids.tolist() == plain == back.encode_ordinary(text)
        marked = theirs.encode(text, allowed_special="all")
        assert ours.encode(text) == marked and ours.decode_bytes(marked) == text.encode()
