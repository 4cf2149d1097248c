"""Proofs that training on several processes is the training of one: losses and weights after each
step, of every kind of parallelism. The cases, and how to add one, are in parallel_cases.py."""

import math
import shutil
from dataclasses import replace

import parallel_cases as cases
import pytest
import torch
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

    def check(name, setting, loss=1e-9, weight=1e-9, by=cases.alone):
        setting = cases.setting_for(name, setting)
        key = (setting, by)
        if key not in known:
            cases.reference(setting, folder / f"{len(known)}.pt", by)
            known.append(key)
        path = folder / f"{known.index(key)}.pt"
        ranks = pools[CASES[name][1]].run(cases.compare, name, setting, path)
        names = {name for name, _ in cases.make_model(setting).named_parameters()}
        assert set().union(*(rank.names for rank in ranks)) == names
        for rank in ranks:
            assert rank.steps == setting.steps
            assert rank.loss <= loss and rank.weight <= weight, rank[:3]

    yield check
    shutil.rmtree(folder)  # weights after each of fifty steps are hundreds of megabytes


def each(*names, waiting=("gpipe", "four_stages", "naive", "bucketed")):
    """The names of cases, of which some wait for the slow tests: other pipelines compute what 1F1B
    does, and lesson 13 proves the two by hand."""
    slow = pytest.mark.slow
    return [pytest.param(name, marks=slow if name in waiting else ()) for name in names]


EVERY = pytest.mark.parametrize("name", each(*CASES))
FLOAT32 = each(*CASES, waiting=set(CASES) - {"ddp", "fsdp"})  # float64 is the sharper proof
OPTIMIZERS = pytest.mark.parametrize("optimizer", ["adamw", "muon"])


@OPTIMIZERS
@EVERY
def test_float64_is_the_training_of_one_process(check, name, optimizer):
    check(name, Setting(optimizer, steps=8))


@OPTIMIZERS
@pytest.mark.parametrize("name", FLOAT32)
def test_float32_has_the_losses_of_one_process(check, name, optimizer):
    check(name, Setting(optimizer, "float32", steps=8), loss=1e-5, weight=1e-3)


@pytest.mark.slow
@OPTIMIZERS
@EVERY
def test_fifty_steps(check, name, optimizer):
    check(name, Setting(optimizer))
    check(name, Setting(optimizer, "float32"), loss=1e-5, weight=1e-3)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["ddp", "zero1", "fsdp"])
def test_sgd_is_one_process_to_the_bit(check, name, tied):
    model = dict(tie_embeddings=tied)
    setting = Setting("sgd", "float32", 3, model=model, train=dict(max_grad_norm=math.inf))
    check(name, setting, loss=1e-6, weight=0, by=cases.in_rank_order)


PLAIN = Setting("sgd", steps=4)  # AdamW and Muon would forgive a gradient of a wrong scale
VARIATIONS = {
    "accumulation": replace(PLAIN, train=dict(grad_accum_steps=3)),
    "clipping": replace(PLAIN, train=dict(max_grad_norm=0.02)),
    "uneven rows": replace(PLAIN, uneven=True),
    "tied": replace(PLAIN, model=dict(tie_embeddings=True)),
    "frozen": replace(PLAIN, frozen=("embedding", "blocks.0.attention.out_proj")),
    "gains": replace(PLAIN, model=dict(n_kv_heads=2)),
    "all, by Muon": Setting(
        "muon",
        steps=4,
        model=dict(tie_embeddings=True, n_kv_heads=2),
        train=dict(grad_accum_steps=2, max_grad_norm=0.02),
        frozen=("blocks.0.mlp.up_proj",),
        uneven=True,
    ),
}


@pytest.mark.parametrize("variation", VARIATIONS)
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_variations(check, name, variation):
    check(name, VARIATIONS[variation], loss=1e-12, weight=1e-12)


CUT = pytest.mark.parametrize("name", each("tensor", "ddp_tensor", "gpipe", "1f1b"))


@CUT
def test_all_variations_of_a_cut_model(check, name):
    check(name, VARIATIONS["all, by Muon"], loss=1e-12, weight=1e-12)


@pytest.mark.slow
@CUT
@pytest.mark.parametrize("variation", VARIATIONS)
def test_variations_of_a_cut_model(check, name, variation):
    check(name, VARIATIONS[variation], loss=1e-12, weight=1e-12)


def test_a_pipeline_of_four_stages(check):
    check("four_stages", VARIATIONS["all, by Muon"], loss=1e-12, weight=1e-12)


PARTS = {
    "gated": dict(mlp="swiglu", norm_position="post"),
    "older": dict(
        mlp="gelu",
        bias=True,
        norm="layernorm",
        qk_norm=False,
        position_encoding="learned",
        logit_softcap=20.0,
    ),
}


@pytest.mark.slow
@CUT
@pytest.mark.parametrize("parts", PARTS)
def test_other_parts_of_a_cut_model(check, name, parts):
    check(name, replace(PLAIN, steps=2, model=PARTS[parts]), loss=1e-12, weight=1e-12)


@pytest.mark.slow
def test_each_variation_changes_the_training():
    plain = [loss for loss, _ in cases.alone(PLAIN)]
    gain = "blocks.0.attention.q_gain"
    for name, setting in VARIATIONS.items():
        (_, first), *_, (loss, last) = cases.alone(setting)
        assert abs(loss - plain[-1]) > 1e-6, name
        assert (first[gain] - last[gain]).abs().max() > 1e-8, name
        for n in first:
            assert torch.equal(first[n], last[n]) == n.startswith(setting.frozen), n


@pytest.mark.parametrize("changes", [dict(n_layers=3, d_ff=257), dict(n_layers=2)])
def test_muon_with_uneven_shares(check, changes):
    "Rows that 2 ranks cannot share evenly, and matrices that they cannot."
    check("fsdp", Setting("muon", steps=2, model=changes))


@pytest.mark.parametrize("precision", [dict(dtype="bfloat16"), dict(param_dtype="bfloat16")])
def test_muon_moves_shards_in_bfloat16(check, precision):
    "Weights that are kept in it, or gathered in it, stay near those of one process."
    check("fsdp", Setting("muon", **{"dtype": "float32", "steps": 3, **precision}), 0.05, 0.05)
