"""A run that is killed and goes on ends with the same bits as one that was never killed."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from acdc_export.errors import CheckpointError, OutputError, TrainingError, UsageError
from acdc_export.files import renamed
from acdc_export.training import ACDC, Schedule, Unstructured, checkpoint

from .test_acdc import OPTIMIZERS, network

EPOCHS = Schedule.of([1, 2, 1, 1, 2, 2])
STEPS = Schedule.of([2, 3, 1, 2], "step")


class Counter:
    """Another object with a state."""

    def __init__(self):
        self.calls = 0

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


class Run:
    """A loop with dropout that draws its data and noise from every source of random numbers."""

    def __init__(self, schedule, optimizer="sgd", **changes):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        self.model = nn.Sequential(nn.Dropout(0.1), *network())
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.rates = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [3, 6], np.float64(0.5))
        self.counter, self.generator = Counter(), torch.Generator().manual_seed(3)
        settings = {"pattern": Unstructured(0.7), "also": [self.counter, self.generator], **changes}
        self.acdc = ACDC(self.model, self.optimizer, self.rates, schedule=schedule, **settings)

    def go(self, path=None, stop=None, every=1, steps=3):
        """Run to the end and return self, or break off in turn `stop` and return None."""
        turns = self.acdc.epochs(path, every) if self.acdc.schedule.unit == "epoch" else self.acdc.steps(path, every)
        for count, turn in enumerate(turns):
            for step in range(steps):
                x = torch.randn(8, 1, 4, 4) + random.random() + np.random.rand()
                y = torch.randint(0, 3, (8,), generator=self.generator)
                self.optimizer.zero_grad()
                F.cross_entropy(self.model(x), y).backward()
                if count == stop and step == 1:
                    return None  # killed, in the middle of an epoch
                self.optimizer.step()
                self.counter.calls += 1
            self.rates.step()
            self.acdc.record(calls=self.counter.calls, index=turn.index)
        return self

    def result(self):
        state = {
            f"{half}.{name}": value for half, weights in self.acdc._states.items() for name, value in weights.items()
        }
        for index, momenta in enumerate(self.optimizer.state.values()):
            state |= {f"{index}.{key}": torch.as_tensor(value) for key, value in momenta.items()}
        state["random"] = torch.get_rng_state()
        rest = (random.random(), np.random.rand(), self.counter.calls, self.rates.state_dict())
        return state, (rest, self.acdc.history, self.acdc.phases)


def assert_same(actual, expected):
    (tensors, values), (expected_tensors, expected_values) = actual, expected
    assert tensors.keys() == expected_tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(value, expected_tensors[name]), name
    assert values == expected_values


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("stop", range(EPOCHS.total))
def test_killed_in_any_epoch_a_run_ends_with_the_same_bits(tmp_path, stop, optimizer):
    expected = Run(EPOCHS, optimizer).go().result()
    assert Run(EPOCHS, optimizer).go(tmp_path / "run.checkpoint", stop) is None
    again = Run(EPOCHS, optimizer)
    if stop:
        torch.manual_seed(99)  # whatever was drawn meanwhile
    assert_same(again.go(tmp_path / "run.checkpoint").result(), expected)
    assert again.acdc.resumed == (stop > 0)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("stop", range(STEPS.total))
def test_so_does_one_whose_schedule_counts_in_steps(tmp_path, stop, every):
    expected = Run(STEPS).go(steps=2).result()
    assert Run(STEPS).go(tmp_path / "run.checkpoint", stop, every, steps=2) is None
    assert_same(Run(STEPS).go(tmp_path / "run.checkpoint", None, every, steps=2).result(), expected)


def test_killed_again_and_again(tmp_path):
    expected = Run(EPOCHS).go().result()
    run, kills = None, 0
    while run is None:
        run = Run(EPOCHS).go(tmp_path / "run.checkpoint", stop=2)
        kills += 1
        assert kills < 10
    assert kills > 4
    assert_same(run.result(), expected)


def test_a_run_that_is_complete_has_nothing_left_to_do_but_its_pair(tmp_path):
    first = Run(EPOCHS).go(tmp_path / "run.checkpoint")
    again = Run(EPOCHS)
    assert list(again.acdc.epochs(tmp_path / "run.checkpoint")) == []
    assert again.acdc.metrics == first.acdc.metrics
    assert again.acdc.done == EPOCHS.total
    pair = again.acdc.save_pair(tmp_path / "pair", torch.zeros(2, 1, 4, 4))
    assert len(pair.record.history.epochs) == EPOCHS.total


KILLED = """
import sys
sys.path[:0] = {path!r}
from tests.training.test_checkpoint import EPOCHS, Run
Run(EPOCHS).go({file!r}, steps=200)
"""


def test_a_process_killed_while_it_writes_leaves_the_checkpoint_before(tmp_path):
    file = tmp_path / "run.checkpoint"
    code = KILLED.format(path=sys.path, file=str(file))
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
        # As soon as there is a file that is being written: a kill at any other moment is the tests' above.
        while process.poll() is None and not list(tmp_path.glob(".run.checkpoint.tmp")):
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        error = process.communicate()[1].decode()
        assert process.returncode in (-signal.SIGKILL, 0), error
        if file.exists():
            checkpoint.read(file)


def test_a_diverged_run_leaves_the_last_good_checkpoint(tmp_path):
    run = Run(EPOCHS)
    file = tmp_path / "run.checkpoint"
    with pytest.raises(TrainingError, match=r"2\.bias of the sparse half is not finite after epoch 2, a sparse one"):
        for epoch in run.acdc.epochs(file):
            if epoch.index == 2:
                with torch.no_grad():
                    run.model[2].bias[0] = float("nan")
    state = checkpoint.read(file)
    assert (state["leg"], state["next"]) == (1, 2)
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    file = tmp_path / "run.checkpoint"
    Run(EPOCHS).go(file, stop=2)
    with pytest.raises(CheckpointError, match=r"another schedule .epochs \[1, 2, 1, 1, 2, 2\] there, epochs \[1, 1\]"):
        Run(Schedule.of([1, 1])).go(file)
    with pytest.raises(CheckpointError, match="another pattern"):
        Run(EPOCHS, pattern=Unstructured(0.8)).go(file)
    with pytest.raises(CheckpointError, match="another optimizer .SGD there, Adam here"):
        Run(EPOCHS, "adam").go(file)
    with pytest.raises(CheckpointError, match="objects in `also` .2 there, 0 here"):
        Run(EPOCHS, also=()).go(file)
    other = Run(EPOCHS)
    other.acdc._model = other.acdc._model[:1]
    with pytest.raises(CheckpointError, match=r"another model .1\.weight: \[4, 1, 3, 3\] there, none here"):
        other.go(file)


@pytest.mark.parametrize("damage", ["cut off", "empty", "text", "foreign", "newer", "pickle"])
def test_a_file_that_is_no_checkpoint_is_refused_and_kept(tmp_path, damage):
    file = tmp_path / "run.checkpoint"
    Run(EPOCHS).go(file, stop=2)
    content = file.read_bytes()
    if damage == "foreign":
        torch.save({"model": torch.zeros(2)}, file)
    elif damage == "newer":
        torch.save({"format": checkpoint._FORMAT, "schema_version": 99}, file)
    elif damage == "pickle":
        torch.save({"format": os.system}, file)
    else:
        file.write_bytes({"cut off": content[: len(content) // 2], "empty": b"", "text": b"hello"}[damage])
    before = file.read_bytes()
    with pytest.raises(CheckpointError, match="schema version 99" if damage == "newer" else "checkpoint"):
        Run(EPOCHS).go(file)
    assert file.read_bytes() == before


def of_release(state, version):
    """A checkpoint's state as older releases wrote it."""

    def parts(new):
        kept = {key: value for key, value in new.items() if key in ("optimizer", "lr_scheduler", "also", "random")}
        return {**kept, "model": {**new["model"]}, "buffers": {**new["model"]}}

    old = {**state, "schema_version": version, "parts": parts(state["parts"])}
    old["identity"] = {key: value for key, value in state["identity"].items() if key != "choice of weights"}
    old["twin"] = parts(state["twin"]) if state["twin"] else None
    old["states"] = {half: {**weights} for half, weights in state["states"].items()}
    if version == 1:
        old["phases"] = [renamed(phase, regrown="revived") for phase in state["phases"]]
    return old


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("stop", [1, 7, 9])
def test_a_checkpoint_of_an_older_release_goes_on(tmp_path, version, stop):
    """Version 1 said `revived` in its phases; version 2 knew neither groups nor the versions of modules."""
    expected = Run(EPOCHS).go().result()
    file = tmp_path / "run.checkpoint"
    Run(EPOCHS).go(file, stop)
    state = torch.load(file, weights_only=True)
    assert state["schema_version"] == checkpoint.SCHEMA_VERSION == 3
    torch.save(of_release(state, version), file)
    run = Run(EPOCHS).go(file)
    assert run.acdc.resumed
    assert_same(run.result(), expected)


def test_a_state_that_could_only_be_read_by_running_code_is_refused_at_once(tmp_path):
    class Odd(Counter):
        def state_dict(self):
            return {"calls": self}

    run = Run(EPOCHS, also=[Odd()])
    with pytest.raises(UsageError, match="can't be kept in a checkpoint"):
        run.go(tmp_path / "run.checkpoint", stop=2)
    with pytest.raises(UsageError, match="int has no state"):
        Run(EPOCHS, also=[3])


def test_a_place_that_can_not_be_written_is_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "run.checkpoint", tmp_path):
        with pytest.raises(OutputError, match="Can't write"):
            next(Run(EPOCHS).acdc.epochs(path))
    with pytest.raises(UsageError, match="every 0 epochs"):
        next(Run(EPOCHS).acdc.epochs(every=0))
    with pytest.raises(UsageError, match="counts in steps"):
        next(Run(STEPS).acdc.epochs())
