"""Proofs that training on several processes is the training of one: losses and weights after each
step, of every kind of parallelism. The cases, and how to add one, are in parallel_cases.py."""

import parallel_cases as cases
import pytest
from parallel_cases import CASES, Setting

from llm_course.ranks import Ranks


@pytest.fixture(scope="session")
def pools():
    "Processes by their number, started once."
    pools = {n: Ranks(n) for n in (2, 4)}
    yield pools
    for pool in pools.values():
        pool.close()


@pytest.fixture(scope="session")
def check(pools, tmp_path_factory):
    "Run a case on its ranks and hold it against one process that made the same training."
    folder = tmp_path_factory.mktemp("references")
    known = []

    def check(name, setting, loss=1e-9, weight=1e-9):
        if setting not in known:
            cases.reference(setting, folder / f"{len(known)}.pt")
            known.append(setting)
        path = folder / f"{known.index(setting)}.pt"
        ranks = pools[CASES[name][1]].run(cases.compare, name, setting, path)
        names = {name for name, _ in cases.make_model(setting).named_parameters()}
        assert set().union(*(rank.names for rank in ranks)) == names
        for rank in ranks:
            assert rank.steps == setting.steps
            assert rank.loss < loss and rank.weight < weight, rank[:3]

    return check


EVERY = pytest.mark.parametrize("name", CASES)
OPTIMIZERS = pytest.mark.parametrize("optimizer", ["adamw", "muon"])


@OPTIMIZERS
@EVERY
def test_float64_is_the_training_of_one_process(check, name, optimizer):
    check(name, Setting(optimizer, steps=10))


@OPTIMIZERS
@EVERY
def test_float32_has_the_losses_of_one_process(check, name, optimizer):
    check(name, Setting(optimizer, "float32", steps=10), loss=1e-5, weight=1e-2)


@pytest.mark.slow
@OPTIMIZERS
@EVERY
def test_fifty_steps(check, name, optimizer):
    check(name, Setting(optimizer))
    check(name, Setting(optimizer, "float32"), loss=1e-5, weight=1e-1)
