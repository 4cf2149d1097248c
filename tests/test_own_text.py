"A text of one's own, with the config that is scaled to it, against a table of neighbors."

import re
from pathlib import Path
from pydoc_data import topics

import pytest

OWN_TEXT = Path(__file__).parent.parent / "configs" / "own_text.yaml"
MANUAL = Path(topics.__file__).read_text(encoding="utf-8")


def bits_per_byte(said, what):
    "The figure in a line of llm_eval's report."
    return float(re.search(rf"^{what} .* ([\d.]+) bits per byte$", said, re.M)[1])


def assert_better_than_a_table(shell, source, share):
    "The model's bits per byte are at most this share of the table's."
    settings = ("--config", OWN_TEXT, f"corpus.source={source}")
    for name in ("llm_tokenize", "llm_train", "llm_eval"):
        process = shell.start(name, *settings)
        said, err = process.communicate(timeout=3600)
        assert process.returncode == 0, err
        print(said)
    assert bits_per_byte(said, "held out") < share * bits_per_byte(said, "bigram")


@pytest.mark.slow
@pytest.mark.parametrize("n_characters, share", [(100_000, 0.95), (len(MANUAL), 0.85)])
def test_the_manual(shell, n_characters, share):
    (shell.folder / "my.txt").write_text(MANUAL[:n_characters], encoding="utf-8")
    assert_better_than_a_table(shell, "my.txt", share)


@pytest.mark.slow
def test_the_standard_library(shell):
    assert_better_than_a_table(shell, "stdlib", 0.90)
