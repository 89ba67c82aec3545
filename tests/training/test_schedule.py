import pytest

from acdc_export.errors import UsageError
from acdc_export.training import Phase, Schedule


def test_alternating_lays_the_phases_end_to_end():
    schedule = Schedule.alternating(warmup=3, sparse=2, dense=1, cycles=2, last_sparse=2, last_dense=4, final_sparse=5)
    assert [(phase.kind[0], phase.start, phase.end) for phase in schedule.phases] == [
        ("d", 0, 3), ("s", 3, 5), ("d", 5, 6), ("s", 6, 8), ("d", 8, 9), ("s", 9, 11), ("d", 11, 15), ("s", 15, 20),
    ]  # fmt: skip
    assert (schedule.epochs, schedule.all_epochs) == (20, 25)
    assert schedule.last_dense == Phase("dense", 11, 15)
    assert schedule.final == Phase("sparse", 15, 20)
    assert schedule.at(14).kind == "dense"
    assert schedule.at(15).kind == "sparse"


# Of the authors' yaml files: ImageNet, 100, 150 and 200 epochs.
@pytest.mark.parametrize(
    ("epochs", "pruned_at", "restored_at"),
    [
        (100, [*range(10, 71, 10), 85], [*range(15, 66, 10), 75]),
        (150, [*range(10, 121, 10), 135], [*range(15, 116, 10), 125]),
        (200, [*range(10, 171, 10), 185], [*range(15, 166, 10), 175]),
    ],
)
def test_paper_has_the_phases_of_the_authors_files(epochs, pruned_at, restored_at):
    schedule = Schedule.paper(epochs)
    assert [phase.start for phase in schedule.phases if phase.kind == "sparse"] == pruned_at
    assert [phase.start for phase in schedule.phases if phase.kind == "dense"] == [0, *restored_at]
    assert schedule.epochs == epochs


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
    with pytest.raises(UsageError, match="100, 150, 200"):
        Schedule.paper(90)
    with pytest.raises(UsageError, match="outside"):
        Schedule.paper().at(100)
    with pytest.raises(UsageError, match="no epochs"):
        Schedule.alternating(warmup=0, sparse=1, dense=1, cycles=0, last_sparse=1, last_dense=1, final_sparse=1)
