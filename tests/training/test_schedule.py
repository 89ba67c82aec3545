from typing import get_args

import pytest

from acdc_export import config
from acdc_export.errors import UsageError
from acdc_export.training import Phase, Schedule
from acdc_export.training.schedule import PUBLISHED


def test_alternating_lays_the_phases_end_to_end():
    schedule = Schedule.alternating(warmup=3, sparse=2, dense=1, cycles=2, last_sparse=2, last_dense=4, final_sparse=5)
    assert [(phase.kind[0], phase.start, phase.end) for phase in schedule.phases] == [
        ("d", 0, 3), ("s", 3, 5), ("d", 5, 6), ("s", 6, 8), ("d", 8, 9), ("s", 9, 11), ("d", 11, 15), ("s", 15, 20),
    ]  # fmt: skip
    assert (schedule.length, schedule.total, schedule.unit) == (20, 25, "epoch")
    assert schedule.last_dense == Phase("dense", 11, 15)
    assert schedule.final == Phase("sparse", 15, 20)
    assert schedule.at(14).kind == "dense"
    assert schedule.at(15).kind == "sparse"


# The lists of epochs in the authors' yaml files.
@pytest.mark.parametrize(
    ("name", "epochs", "pruned_at", "restored_at"),
    [
        ("imagenet-100", 100, [*range(10, 71, 10), 85], [*range(15, 66, 10), 75]),
        ("imagenet-150", 150, [*range(10, 121, 10), 135], [*range(15, 116, 10), 125]),
        ("imagenet-200", 200, [*range(10, 171, 10), 185], [*range(15, 166, 10), 175]),
        ("cifar-freq20", 200, [10, 50, 90, 130, 170], [30, 70, 110, 150]),
        ("cifar-dense13", 225, [10, 43, 76, 109, 142, 175], [30, 63, 96, 129, 162]),
    ],
)
def test_published_schedules_have_the_phases_of_the_authors_files(name, epochs, pruned_at, restored_at):
    schedule = Schedule.published(name)
    assert [phase.start for phase in schedule.phases if phase.kind == "sparse"] == pruned_at
    assert [phase.start for phase in schedule.phases if phase.kind == "dense"] == [0, *restored_at]
    assert schedule.length == epochs


def test_the_names_that_a_pipeline_may_use_are_those_of_the_published_schedules():
    assert set(get_args(config.Published)) == set(PUBLISHED)


def test_phases_may_be_counted_in_steps():
    schedule = Schedule.of([2, 1, 3, 4], "step")
    assert [phase.kind for phase in schedule.phases] == ["dense", "sparse", "dense", "sparse"]
    assert (schedule.length, schedule.total, schedule.unit) == (10, 14, "step")
    assert Schedule.of([1, 2]).in_steps(391) == Schedule.of([391, 782], "step")
    with pytest.raises(UsageError, match="step 10 is outside"):
        schedule.at(10)
    with pytest.raises(UsageError, match="in steps already"):
        schedule.in_steps(2)
    with pytest.raises(UsageError, match="neither 'epoch' nor 'step'"):
        Schedule.of([1, 1], "batch")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("phases", "problem"),
    [
        ([], "start at epoch 0"),
        ([("dense", 1, 2), ("sparse", 2, 3)], "start at epoch 0"),
        ([("sparse", 0, 2)], "no dense phase"),
        ([("dense", 0, 2)], "end with a sparse"),
        ([("dense", 0, 2), ("sparse", 3, 4)], "ends at epoch 2 and the next one starts at 3"),
        ([("dense", 0, 2), ("sparse", 1, 4)], "ends at epoch 2 and the next one starts at 1"),
        ([("dense", 0, 2), ("dense", 2, 3), ("sparse", 3, 4)], "two dense phases"),
        ([("dense", 0, 2), ("sparse", 2, 2)], "has no epochs"),
        ([("dens", 0, 2), ("sparse", 2, 3)], "neither dense nor sparse"),
    ],
)
def test_unsound_phases_are_refused(phases, problem):
    with pytest.raises(UsageError, match=problem):
        Schedule(tuple(Phase(*phase) for phase in phases))


def test_unknown_lengths_and_epochs_are_refused():
    with pytest.raises(UsageError, match="imagenet-100"):
        Schedule.paper(90)
    with pytest.raises(UsageError, match="epoch 100 is outside"):
        Schedule.paper().at(100)
    with pytest.raises(UsageError, match="no epochs"):
        Schedule.alternating(warmup=0, sparse=1, dense=1, cycles=0, last_sparse=1, last_dense=1, final_sparse=1)
