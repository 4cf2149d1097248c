"""Train and encode with this course's BPE and with the libraries that people use, in one run on one machine, and print a table.

    python benchmarks/tokenizer.py                      # Tiny Shakespeare, whole and in passages, and the standard library
    python benchmarks/tokenizer.py --corpus my_folder   # any text that load_documents takes
    python benchmarks/tokenizer.py --memory-mb 100      # how much text encode_iterable reads while its memory is watched

Every figure is the median of several runs, taken in turn (ours, theirs, ours, theirs, …), because a shared machine changes its speed.
"""
import argparse
import importlib.metadata
import os
import platform
import statistics
import time
import tracemalloc
from collections import deque
from collections.abc import Callable

import sentencepiece
import tiktoken
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from llm_course.corpus import load_documents
from llm_course.tokenizer import BPETokenizer, SentencePieceTokenizer

try: import rustbpe
except ImportError: rustbpe = None

EOS = "<|endoftext|>"
GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def train_hf(texts: list[str], vocab_size: int) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False, special_tokens=[EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def train_rustbpe(texts: list[str], vocab_size: int):
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(iter(texts), vocab_size, pattern=GPT2)
    return tokenizer


def medians(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    "Seconds of each run, the median of `repeats`; they are called in turn."
    seconds = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(title: str, seconds: dict[str, float], megabytes: float) -> None:
    "One line a competitor; the ratios say how many times as fast our first line is."
    ours = next(iter(seconds.values()))
    print(f"\n{title}")
    for name, value in seconds.items():
        print(f"  {name:44}{value:8.2f} s {megabytes / value:8.2f} MB/s   ours is {value / ours:5.2f} times as fast")


def training(texts: list[str], vocab_size: int, repeats: int, megabytes: float) -> None:
    runs = {"llm_course": lambda: BPETokenizer.train(texts, vocab_size), "tokenizers (Rust, all cores)": lambda: train_hf(texts, vocab_size)}
    if rustbpe: runs["rustbpe (Rust, all cores)"] = lambda: train_rustbpe(texts, vocab_size)
    runs["sentencepiece BPE (C++)"] = lambda: SentencePieceTokenizer.train(texts, vocab_size)
    table(f"training on {len(texts):,} texts, vocabulary {vocab_size:,}", medians(runs, repeats), megabytes)


def encoding(texts: list[str], vocab_size: int, repeats: int, megabytes: float) -> None:
    "Lists of ids from every encoder, all but sentencepiece's with one vocabulary, so all but its ids are compared."
    ours, path = BPETokenizer.train(texts, vocab_size), "benchmark.json"
    try: hf = tokenizers.Tokenizer.from_file(str(ours.to_hf(path)))
    finally: os.unlink(path)
    tik, sp, warm = ours.to_tiktoken(), SentencePieceTokenizer.train(texts, vocab_size), ours
    fresh = lambda: BPETokenizer(ours.vocab, ours.merges, ours.special_tokens)
    expected = [tik.encode_ordinary(text) for text in texts]
    hf.encode_special_tokens = True
    assert [warm.encode_ordinary(text) for text in texts] == expected == [hf.encode(text, add_special_tokens=False).ids for text in texts]
    assert all(a.tolist() == b for a, b in zip(ours.encode_batch(texts), expected, strict=True))

    def run_fresh():
        encode = fresh().encode_ordinary
        for text in texts: encode(text)

    runs = {
        "llm_course, one core, empty cache": run_fresh,
        "llm_course, one core, again": lambda: [warm.encode_ordinary(text) for text in texts],
        "llm_course, encode_batch, all cores": lambda: deque(fresh().encode_batch(texts), maxlen=0),
        "tiktoken (Rust), one thread": lambda: [tik.encode_ordinary(text) for text in texts],
        "tokenizers (Rust), one thread": lambda: [hf.encode(text, add_special_tokens=False).ids for text in texts],
        "sentencepiece BPE (C++), its own vocabulary": lambda: [sp.encode_ordinary(text) for text in texts],
    }
    table(f"encoding, vocabulary {vocab_size:,}", medians(runs, repeats), megabytes)


def memory(texts: list[str], vocab_size: int, megabytes: int) -> None:
    "What encode_iterable holds at most, beyond the vocabulary and the pieces it remembers, while it reads the texts over and over."
    tokenizer, size = BPETokenizer.train(texts, vocab_size), sum(len(text.encode()) for text in texts) / 1e6
    rounds = max(1, round(megabytes / size))
    deque(tokenizer.encode_iterable(texts), maxlen=0)
    tracemalloc.start()
    deque(tokenizer.encode_iterable(text for _ in range(rounds) for text in texts), maxlen=0)
    print(f"\nencode_iterable over {rounds * size:.0f} MB: {tracemalloc.get_traced_memory()[1] / 1e6:.2f} MB at most")
    tracemalloc.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="*", default=["tinyshakespeare", "stdlib"])
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-mb", type=int, default=100)
    arguments = parser.parse_args()
    names = [name for name in ("numpy", "regex", "tokenizers", "tiktoken", "sentencepiece", "rustbpe") if name != "rustbpe" or rustbpe]
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores,", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names))
    print(f"medians of {arguments.repeats} runs, in turn")
    for source in arguments.corpus:
        try: texts = list(load_documents(source))
        except FileNotFoundError as error:
            print(f"\n{source}: left out, {error}")
            continue
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        print(f"\n{source}: {len(texts):,} texts, {megabytes:.1f} MB")
        training(texts, arguments.vocab_size, arguments.repeats, megabytes)
        if source == "tinyshakespeare": training(["".join(texts)], arguments.vocab_size, arguments.repeats, megabytes)
        encoding(texts, arguments.vocab_size, arguments.repeats, megabytes)
    if arguments.memory_mb: memory(list(load_documents("stdlib")), arguments.vocab_size, arguments.memory_mb)


if __name__ == "__main__":
    main()
