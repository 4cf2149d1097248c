"What takes too long for a lesson: the tokenizer's promises on large input."
import tracemalloc
from collections import deque

from llm_course.corpus import load_documents
from llm_course.tokenizer import BPETokenizer


def test_encode_iterable_reads_20_mb_in_less_than_one():
    half = "".join(load_documents("stdlib", "train"))[:500_000]
    tokenizer = BPETokenizer.train([half], 2048)
    deque(tokenizer.encode_iterable([half]), maxlen=0)  # now it has seen all pieces
    texts = [half * 20, *[half] * 20]
    tracemalloc.start()
    deque(tokenizer.encode_iterable(texts), maxlen=0)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(map(len, texts)) >= 20e6 and used < 1e6


def test_large_input_is_counted_by_processes():
    "More than the eight batches that are counted alone, without being told; the same merges as one process finds."
    texts = list(load_documents("stdlib")) * 4
    assert sum(map(len, texts)) > 8 * (1 << 22)
    assert BPETokenizer.train(texts, 600) == BPETokenizer.train(texts, 600, processes=1)
