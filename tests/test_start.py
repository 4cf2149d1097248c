"Training starts clean: nothing that happened to the model before changes what a step does."

import sys

import pytest
import torch
from torch.testing import assert_close

from llm_course.context import evaluating
from llm_course.gpt import GPT
from llm_course.measure import evaluate
from llm_course.model_config import GPTConfig
from llm_course.optim import make_optimizer
from llm_course.packing import Batch
from llm_course.settings import TrainConfig
from llm_course.throughput import summed_loss
from llm_course.training import train

CONFIG = TrainConfig(max_steps=3, warmup_steps=1, grad_accum_steps=4, lr=0.01)


def batches(n=12):
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(32, (3, 17), generator=generator) for _ in range(n)]
    return [Batch(row[:, :-1], row[:, 1:]) for row in rows]


def tiny_model(**changes):
    torch.manual_seed(0)
    shape = dict(vocab_size=32, max_seq_len=16, n_layers=2, n_heads=2, d_model=16)
    return GPT(GPTConfig(**shape | changes))


def losses(model, **more):
    return [metrics.loss for metrics in train(model, batches(), CONFIG, **more)]


def look(model):
    summed_loss(model, batches()[5])[0].backward()


def look_at_a_frozen_part(model):
    look(model)
    model.embedding.weight.requires_grad_(False)


def interrupt(model, at, **more):
    "Ctrl-C in the forward pass number `at`, counted from 1; the steps that were made before."
    seen = []

    def stop(*_):
        seen.append(1)
        if len(seen) == at:
            raise KeyboardInterrupt

    hook = model.register_forward_pre_hook(stop)
    made = []
    try:
        for metrics in train(model, batches(), CONFIG, **more):
            made.append(metrics.loss)
    except KeyboardInterrupt:
        pass
    finally:
        hook.remove()
    assert len(seen) == at
    return made


def take_a_step_apart(model):
    "A batch without a target ends a step in the middle."
    nothing = Batch(batches()[0].ids, torch.full((3, 16), -100))
    with pytest.raises(ValueError, match="no target"):
        list(train(model, [nothing] * 4, CONFIG))
    look(model)


BEFORE = {
    "a look at gradients": look,
    "a stop in the second batch": lambda model: interrupt(model, 2),
    "a stop in the last batch": lambda model: interrupt(model, 4),
    "a step that failed": take_a_step_apart,
    "evaluation": lambda model: evaluate(model, batches()),
    "evaluation mode": lambda model: model.eval(),
}


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_step_forgets_what_was_left_behind(before, optimizer):
    model = tiny_model()
    made = make_optimizer(model, TrainConfig(optimizer=optimizer))
    before(model)
    other = tiny_model()
    expected = losses(other, optimizer=make_optimizer(other, TrainConfig(optimizer=optimizer)))
    assert losses(model, optimizer=made) == expected
    assert all(p.grad is None for p in model.parameters())


def test_left_gradients_of_a_frozen_part_move_nothing():
    model = tiny_model()
    look_at_a_frozen_part(model)
    start = model.embedding.weight.detach().clone()
    optimizer = make_optimizer(model, CONFIG)
    norms = [metrics.grad_norm for metrics in train(model, batches(), CONFIG, optimizer)]
    frozen = tiny_model()
    frozen.embedding.weight.requires_grad_(False)
    assert norms == [metrics.grad_norm for metrics in train(frozen, batches(), CONFIG)]
    assert torch.equal(model.embedding.weight, start)


def test_a_stop_between_two_steps_and_on():
    whole = tiny_model()
    expected = losses(whole)
    model = tiny_model()
    optimizer = make_optimizer(model, CONFIG)
    made = interrupt(model, 7, optimizer=optimizer)  # in the second step
    rest = train(model, batches()[4:], CONFIG, optimizer, start_step=len(made))
    assert made + [metrics.loss for metrics in rest] == expected
    assert_close(model.state_dict(), whole.state_dict(), rtol=0, atol=0)


def stop_at_line(number, work):
    "Run `work` with a Ctrl-C at the given line, counted over all lines of Python that it runs."
    seen = [0]

    def trace(frame, event, argument):
        if event == "line":
            seen[0] += 1
            if seen[0] == number:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_a_stop_anywhere_in_an_evaluation_leaves_a_model_that_trains():
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout(), torch.nn.Linear(1, 1))
    model[2].eval()  # a part that somebody keeps in evaluation mode

    def look_at_it():
        with evaluating(model):
            assert not any(module.training for module in model.modules())

    number = 0
    healed = 0
    while stop_at_line(number := number + 1, look_at_it):
        modes = [module.training for module in model.modules()]
        if not model.training:  # as `train` asks before each step
            healed += 1
            model.train()
            model[2].eval()
            modes = [module.training for module in model.modules()]
        assert modes == [True, True, True, False], f"after a stop at line {number}: {modes}"
    assert number > 20 and healed < number / 4


def test_train_wakes_a_model_whose_evaluation_was_stopped():
    model = tiny_model(dropout=0.5)

    def stop(*_):
        raise KeyboardInterrupt

    hook = model.blocks[0].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, batches())
    hook.remove()
    assert all(module.training for module in model.modules())
    valid_losses = []
    for metrics in train(model, batches(), CONFIG, valid=batches()[:2]):
        assert all(module.training for module in model.modules())
        valid_losses.append(metrics.valid_loss)
    assert valid_losses[-1] is not None
