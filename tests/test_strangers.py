"Folders of strangers cannot hang, exhaust or crash us: one sentence, within a second."

import json
import random
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_course.bpe import BPETokenizer
from llm_course.checkpoint import load_model, save_checkpoint
from llm_course.foreign import HFTokenizer
from llm_course.foreign_bpe import from_gpt2
from llm_course.formats import fingerprint, from_hf, load_tokenizer, to_hf
from llm_course.gpt import GPT
from llm_course.interface import CharTokenizer
from llm_course.model_config import GPTConfig
from llm_course.pretrained import from_pretrained, to_pretrained
from llm_course.run_folder import read_config
from llm_course.seals import seal_text

SHAPE = dict(max_seq_len=16, n_layers=2, n_heads=2, d_model=16)
DEEP = "[" * 100_000
VALUES = [10**8, 10**30, -1, 0, 2.5, "4", "x" * 100_000, None, True, [1], {"a": 1}, [[[[1]]]] * 9]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    "A Hugging Face folder, as one fetches it."
    folder = tmp_path_factory.mktemp("exported")
    tokenizer = BPETokenizer.train(["the cat sat on the mat, hello"] * 50, 270)
    torch.manual_seed(0)
    shape = dict(SHAPE, vocab_size=270, qk_norm=False, mlp="swiglu", tie_embeddings=False)
    to_pretrained(folder, GPT(GPTConfig(**shape)), tokenizer)
    (folder / "tokenizer_kind.json").unlink()
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "theirs")


@pytest.fixture
def run(tmp_path):
    "A checkpoint of ours, from somebody."
    tokenizer = CharTokenizer.train(["the cat sat"])
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE, vocab_size=tokenizer.vocab_size))
    return save_checkpoint(tmp_path / "run", 1, model, tokenizer)


def sentence(read, *arguments):
    "What a reader says of a folder; None where it reads it. Within a second of computing."
    begin = time.process_time()
    try:
        read(*arguments)
    except (ValueError, FileNotFoundError) as error:
        said = str(error).replace(str(arguments[0]), "")
        assert len(said) < 700 and "\n" not in said, said[:1000]
        assert said.endswith(".")
        return said
    finally:
        assert time.process_time() - begin < 2  # one, on a machine that does nothing else
    return None


def change_json(path, **values):
    facts = json.loads(path.read_text()) | values
    path.write_text(json.dumps(facts))


def test_every_value_of_a_config(folder):
    path = folder / "config.json"
    original = path.read_text()
    names = [*json.loads(original), "layer_types", "rope_parameters", "quantization_config"]
    read = set()
    for name in names:
        for value in VALUES:
            change_json(path, **{name: value})
            said = sentence(from_pretrained, folder)
            if said is None:
                read.add((name, str(value)[:20]))
            path.write_text(original)
    sizes = {"hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size"}
    own_default = {("intermediate_size", "None")}
    assert not {name for name, _ in read - own_default} & sizes, read
    assert sentence(from_pretrained, folder) is None


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000, "[]", "3", "", "\ud800", "{}", '"a"'])
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "index"]
)
def test_every_file_as_something_else(folder, name, text):
    if name == "index":
        name = "model.safetensors.index.json"
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    said = sentence(from_pretrained, folder)
    assert said is not None or (name, text) == ("tokenizer_config.json", "{}")


def test_an_index_of_something_else(folder):
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    for weight_map in (
        5,
        [1],
        {"a": 5},
        {"a": ["b"]},
        {"a": "../b"},
        {"a": "/etc/passwd"},
        {"a": None},
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        assert sentence(from_pretrained, folder)


def test_a_tensor_larger_than_its_file(folder):
    (folder / "model.safetensors").unlink()
    state = {"model.embed_tokens.weight": torch.zeros(1, 1).expand(10**6, 10**6)}
    torch.save(state, folder / "pytorch_model.bin")
    change_json(folder / "config.json", vocab_size=10**6, hidden_size=10**6)
    assert "smaller than a tensor in it" in sentence(from_pretrained, folder)


def test_a_model_larger_than_the_memory(folder):
    "A file that says a petabyte, and has it, with nothing in it: for what a disk can claim."
    header = {"a": {"dtype": "F32", "shape": [1 << 24, 1 << 22], "data_offsets": [0, 1 << 48]}}
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        try:
            file.truncate(8 + len(text) + (1 << 48))
        except OSError:
            pytest.skip("this file system has no sparse files of that size")
    assert sentence(from_pretrained, folder)


def special_tokens(n):
    return [f"<|{i}|>" for i in range(n)]


def test_20_000_special_tokens(tmp_path):
    tokenizer = BPETokenizer.train(
        ["the cat sat on the mat"] * 9, 256 + 20_000, special_tokens(20_000)
    )
    to_hf(tokenizer, tmp_path / "tokenizer.json")
    tokenizer.save(tmp_path / "ours")
    for read in (HFTokenizer, from_hf):
        assert sentence(read, tmp_path / "tokenizer.json") is None
    assert sentence(load_tokenizer, tmp_path / "ours") is None
    assert sentence(tokenizer.encode, "the <|19999|> cat <|7|>") is None
    again = load_tokenizer(tmp_path / "ours")
    assert again.encode("a<|19999|>") == [
        tokenizer.encode("a")[0],
        tokenizer.special_ids["<|19999|>"],
    ]
    assert fingerprint(again) == fingerprint(tokenizer)


def test_every_value_of_a_tokenizer(folder):
    path = folder / "tokenizer.json"
    facts = json.loads(path.read_text())
    for name in facts:
        for value in (*VALUES, [None], [{}], {"type": 5}, {"vocab": {"a": []}, "merges": [1]}):
            path.write_text(json.dumps(facts | {name: value}))
            for read in (from_hf, HFTokenizer, load_tokenizer):
                sentence(read, path if read != load_tokenizer else folder)
    far = {**facts["added_tokens"][0], "id": 4_000_000_000, "content": "far"}
    path.write_text(json.dumps(facts | {"added_tokens": [far]}))
    assert sentence(from_hf, path)


def test_gpt2_files_of_something_else(tmp_path):
    BPETokenizer.train(["the cat sat on the mat, hello"] * 50, 270).save(tmp_path)
    (tmp_path / "tokenizer_kind.json").unlink()
    vocab = (tmp_path / "vocab.json").read_text()
    merges = (tmp_path / "merges.txt").read_text()
    for text in (
        DEEP,
        "[]",
        "",
        "{",
        '{"a": "b"}',
        '{"a": [1]}',
        '{"a": 1e400}',
        '{"a": 99999999999}',
    ):
        (tmp_path / "vocab.json").write_text(text)
        assert sentence(from_gpt2, tmp_path) and sentence(load_tokenizer, tmp_path)
    (tmp_path / "vocab.json").write_text(vocab)
    for text in ("a", "a b c", "\0", "t h\n" * 3, "é é"):
        (tmp_path / "merges.txt").write_text(text)
        assert sentence(from_gpt2, tmp_path) and sentence(load_tokenizer, tmp_path)
    (tmp_path / "merges.txt").write_text(merges)
    assert sentence(load_tokenizer, tmp_path) is None


def sealed(run, **model):
    "A checkpoint whose config says something else about the model, and is sealed again."
    import yaml

    path = run / "config.yaml"
    config = yaml.safe_load(path.read_text())
    del config["sha256"]
    config["model"] |= model
    path.write_text(seal_text(yaml.safe_dump(config, sort_keys=False)))


def test_every_value_of_a_checkpoint(run):
    path = run / "config.yaml"
    original = path.read_text()
    for name in vars(GPTConfig()):
        for value in VALUES[name[0] == "n" :: 2]:
            sealed(run, **{name: value})
            said = sentence(load_model, run)
            if name in ("n_layers", "d_model", "vocab_size", "d_ff", "n_heads", "d_head"):
                same = {("n_heads", True), ("d_ff", None)}
                assert said or (name, value) in same or (name, value) == ("d_head", 0), (
                    name,
                    value,
                )
            path.write_text(original)
    sealed(run, position_encoding="sinusoidal", max_seq_len=1 << 24)
    assert "is too long" in sentence(load_model, run)
    sealed(run, position_encoding="learned", max_seq_len=1 << 24)
    assert "belongs to another model" in sentence(load_model, run)


def test_a_config_that_is_a_trap(run):
    laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
    for i in range(9):
        laughs += f"a{i + 1}: &a{i + 1} [{','.join([f'*a{i}'] * 9)}]\n"
    for text in (
        DEEP,
        "{a: " * 100_000,
        laughs,
        laughs + "format: *a9\nstep: 1\n",
        "",
        "- a",
        "\0",
    ):
        for read in (read_config, load_model):
            (run / "config.yaml").write_text(text)
            assert sentence(read, run)


@pytest.mark.parametrize("seed", range(3))
def test_random_bytes(folder, run, seed):
    draw = random.Random(seed)
    for place in (folder, run):
        read = from_pretrained if place == folder else load_model
        for path in [path for path in place.rglob("*") if path.is_file()]:
            data = path.read_bytes()
            for _ in range(4):
                changed = bytearray(data)
                for _ in range(draw.choice((1, 5, 50))):
                    changed[draw.randrange(min(len(data), 2000))] = draw.randrange(256)
                path.write_bytes(changed[: draw.choice((len(data), draw.randrange(len(data))))])
                said = sentence(read, place)
                assert said or place == folder
            path.write_bytes(data)


def test_weights_of_another_model(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    for name in list(weights)[:4]:
        fewer = {other: x for other, x in weights.items() if other != name}
        save_file(fewer, path)
        assert f"{name} is missing" in sentence(from_pretrained, folder)
    save_file({f"x{i}": torch.zeros(1) for i in range(3000)}, path)
    assert "more" in sentence(from_pretrained, folder)
