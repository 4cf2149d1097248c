"""Train and encode with this course's BPE and with the libraries that people use.

    python benchmarks/tokenizer.py                    # Tiny Shakespeare, then the standard library
    python benchmarks/tokenizer.py --corpus folder    # any text that load_documents takes
    python benchmarks/tokenizer.py --memory-mb 100    # read by encode_iterable under watch

Every figure is the median of several runs, taken in turn (ours, theirs, ours, theirs, …), because
a shared machine changes its speed. Ratios are to the first line of a table, which is ours.
"""

import argparse
import importlib.metadata
import os
import platform
import statistics
import tempfile
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterable

import tokenizers
from in_turn import measure_in_turn, median_ratio
from tokenizers import decoders, models, pre_tokenizers, trainers

from llm_course.bpe import BPETokenizer
from llm_course.foreign import SentencePieceTokenizer
from llm_course.foreign_bpe import to_tiktoken
from llm_course.formats import to_hf
from llm_course.sources import load_documents
from llm_course.texts import END_OF_TEXT, PATTERNS

try:
    import rustbpe
except ImportError:
    rustbpe = None

LIBRARIES = ("numpy", "regex", "tokenizers", "tiktoken", "sentencepiece", "rustbpe")


def train_hf(texts: list[str], vocab_size: int) -> tokenizers.Tokenizer:
    "A tokenizer of Hugging Face's trainer, with the pieces of GPT-2."
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_rustbpe(texts: list[str], vocab_size: int) -> None:
    rustbpe.Tokenizer().train_from_iterator(iter(texts), vocab_size, pattern=PATTERNS["gpt2"])


def read_all(results: Iterable) -> None:
    deque(results, maxlen=0)


def megabytes_of(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def print_table(
    title: str, runs: dict[str, Callable[[], object]], megabytes: float, rounds: int
) -> None:
    "Run all in turn, and print a line for each; ratios are to the first."
    seconds = measure_in_turn(runs, rounds)
    ours = next(iter(seconds.values()))
    print(f"\n{title}")
    print(f"  {'':44}{'seconds':>9}{'MB/s':>9}")
    for name, theirs in seconds.items():
        median = statistics.median(theirs)
        ratio = f"the first is {median_ratio(ours, theirs):.2f} times as fast"
        print(f"  {name:44}{median:9.2f}{megabytes / median:9.2f}   {ratio}")


def training(texts: list[str], vocab_size: int, rounds: int) -> None:
    runs = {
        "llm_course": lambda: BPETokenizer.train(texts, vocab_size),
        "tokenizers (Rust, all cores)": lambda: train_hf(texts, vocab_size),
    }
    if rustbpe:
        runs["rustbpe (Rust, all cores)"] = lambda: train_rustbpe(texts, vocab_size)
    runs["sentencepiece BPE (C++)"] = lambda: SentencePieceTokenizer.train(texts, vocab_size)
    title = f"training on {len(texts):,} texts, vocabulary {vocab_size:,}"
    print_table(title, runs, megabytes_of(texts), rounds)


def encoding(ours: BPETokenizer, texts: list[str], rounds: int) -> None:
    "Encoders with one vocabulary, so ids are compared; sentencepiece's has its own."
    with tempfile.TemporaryDirectory() as folder:
        hf = tokenizers.Tokenizer.from_file(str(to_hf(ours, f"{folder}/tokenizer.json")))
    hf.encode_special_tokens = True
    tik = to_tiktoken(ours)
    sp = SentencePieceTokenizer.train(texts, ours.vocab_size)

    def by_hf(text):
        return hf.encode(text, add_special_tokens=False).ids

    expected = list(map(tik.encode_ordinary, texts))
    assert list(map(ours.encode_ordinary, texts)) == list(map(by_hf, texts)) == expected
    for batch in (ours.encode_batch(texts, threads=1), ours.encode_batch(texts)):
        assert all(a.tolist() == b for a, b in zip(batch, expected, strict=True))
    runs = {
        "llm_course, encode_batch, one thread": lambda: read_all(ours.encode_batch(texts, 1)),
        "llm_course, encode_batch, all cores": lambda: read_all(ours.encode_batch(texts)),
        "llm_course, encode_ordinary": lambda: read_all(map(ours.encode_ordinary, texts)),
        "tiktoken (Rust), encode_ordinary": lambda: read_all(map(tik.encode_ordinary, texts)),
        "tiktoken (Rust), its batch, all cores": lambda: tik.encode_ordinary_batch(texts),
        "tokenizers (Rust), one thread": lambda: read_all(map(by_hf, texts)),
        "sentencepiece BPE (C++)": lambda: read_all(map(sp.encode_ordinary, texts)),
    }
    title = f"encoding {len(texts):,} texts, vocabulary {ours.vocab_size:,}"
    print_table(title, runs, megabytes_of(texts), rounds)


def encoding_lines(ours: BPETokenizer, texts: list[str], rounds: int) -> None:
    "An open file, line by line: each line has the ids that it has alone."
    tik = to_tiktoken(ours)
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as file:
        file.write("".join(texts))

        def lines():
            file.seek(0)
            return file

        expected = list(map(tik.encode_ordinary, lines()))
        assert [ids.tolist() for ids in ours.encode_batch(lines(), threads=1)] == expected
        runs = {
            "llm_course, encode_batch, one thread": lambda: read_all(ours.encode_batch(lines(), 1)),
            "llm_course, encode_batch, all cores": lambda: read_all(ours.encode_batch(lines())),
            "llm_course, encode_iterable": lambda: read_all(ours.encode_iterable(lines())),
            "tiktoken (Rust), line by line": lambda: read_all(map(tik.encode_ordinary, lines())),
        }
        title = f"encoding an open file of {len(expected):,} lines"
        print_table(title, runs, megabytes_of(texts), rounds)


def memory(texts: list[str], vocab_size: int, megabytes: int) -> None:
    "What encode_iterable holds at most, beyond the vocabulary, while it reads texts again and again."
    tokenizer = BPETokenizer.train(texts, vocab_size)
    rounds = max(1, round(megabytes / megabytes_of(texts)))
    read_all(tokenizer.encode_iterable(texts[:1]))
    tracemalloc.start()
    read_all(tokenizer.encode_iterable(text for _ in range(rounds) for text in texts))
    used = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    read = rounds * megabytes_of(texts)
    print(f"\nencode_iterable over {read:.0f} MB: {used:.2f} MB at most")


def load(source: str) -> list[str]:
    "The documents; none, and one sentence, where they cannot be had."
    try:
        return list(load_documents(source))
    except (OSError, ValueError) as error:
        print(f"\n{source} is left out: {error}")
        return []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", nargs="*", default=["tinyshakespeare", "stdlib"])
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-mb", type=int, default=100)
    arguments = parser.parse_args()
    names = [name for name in LIBRARIES if name != "rustbpe" or rustbpe]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores,", ", ".join(versions))
    print(f"medians of {arguments.repeats} runs, in turn")
    for source in arguments.corpus:
        texts = load(source)
        if not texts:
            continue
        print(f"\n{source}: {len(texts):,} texts, {megabytes_of(texts):.1f} MB")
        training(texts, arguments.vocab_size, arguments.repeats)
        if source == "tinyshakespeare":
            training(["".join(texts)], arguments.vocab_size, arguments.repeats)
        tokenizer = BPETokenizer.train(texts, arguments.vocab_size)
        encoding(tokenizer, texts, arguments.repeats)
        encoding_lines(tokenizer, texts, arguments.repeats)
    if arguments.memory_mb:
        memory(load("stdlib"), arguments.vocab_size, arguments.memory_mb)


if __name__ == "__main__":
    main()
