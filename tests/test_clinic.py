"""The clinic's ten faults are named by what they do, alone, in pairs and nine at once; healthy
trainers are let pass, whatever their optimizer, seed and number of ranks."""

from functools import partial
from itertools import combinations
from pathlib import Path

import pytest
import torch

from llm_course.clinic import FAULTS, Settings, Trainer, diff, plant, train_on_rank
from llm_course.probes import FINDINGS, PROBES, find_parallel_bug, make_documents, make_model
from llm_course.ranks import Ranks

ADAMW = partial(torch.optim.AdamW, lr=0.01)
OPTIMIZERS = {
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "adamw": ADAMW,
}
ONE_LINE = {"gains counted twice", "local norm"}  # both change the same one
PAIRS = [pair for pair in combinations(FAULTS, 2) if set(pair) != ONE_LINE]


@pytest.fixture(scope="module")
def ranks():
    with Ranks(2) as pool:
        yield pool


def patient(*names):
    return plant(*[FAULTS[name] for name in names])


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(name, ranks):
    found = find_parallel_bug(patient(name), ranks)
    assert list(found) == [name]
    assert len(found[name]) <= 300 and found[name].endswith(".")
    n_changed = sum(line.startswith(("+", "-")) for line in diff(FAULTS[name]).splitlines())
    assert n_changed <= 5


def test_nine_at_once_are_named(ranks):
    names = [name for name in FAULTS if name != "gains counted twice"]
    assert list(find_parallel_bug(patient(*names), ranks)) == names


@pytest.mark.parametrize("optimizer", ("momentum", "adamw"))
def test_a_healthy_trainer_has_no_fault(optimizer, ranks):
    assert find_parallel_bug(Trainer, ranks, OPTIMIZERS[optimizer], seed=7) == {}


def test_what_is_none_of_the_ten_is_not_given_a_name(ranks):
    kept = ("self.world.sum(parameters_to_vector(moved))", "parameters_to_vector(moved)")
    assert list(find_parallel_bug(plant(kept), ranks)) == ["control"]


def test_the_probes_know_no_trainer():
    path = Path(__file__).parent.parent / "llm_course" / "probes.py"
    text = path.read_text(encoding="utf-8")
    assert not any(name in text for name in ("FAULTS", "plant(", "getsource", "__name__"))
    assert set(PROBES) == set(FINDINGS) == {"control", *FAULTS}


def test_a_part_of_a_pool_is_refused(ranks):
    model = partial(make_model, PROBES["control"])
    documents = make_documents(PROBES["control"], 0)
    with pytest.raises(ValueError, match=r"n_ranks=3 must be 1, or all 2 of the pool\."):
        ranks.run(train_on_rank, Trainer, model, documents, Settings(), 1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids=" + ".join)
def test_two_faults_are_both_named(pair, ranks):
    assert set(find_parallel_bug(patient(*pair), ranks)) == set(pair)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_adamw(name, ranks):
    assert list(find_parallel_bug(patient(name), ranks, ADAMW, seed=3)) == [name]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", (1, 2, 4))
def test_healthy_on_any_number_of_ranks(world_size):
    with Ranks(world_size) as pool:
        for seed in range(3):
            for optimizer in OPTIMIZERS.values():
                assert find_parallel_bug(Trainer, pool, optimizer, seed) == {}


@pytest.mark.slow
def test_every_fault_is_named_on_four_ranks():
    with Ranks(4) as pool:
        for name in FAULTS:
            assert list(find_parallel_bug(patient(name), pool)) == [name]
