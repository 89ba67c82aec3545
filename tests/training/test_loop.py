"""The pipelines' loop runs on a network and data that take a second; so does the example of a loop of one's own."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from acdc_export.config import Model, Pattern, ScheduleTable, Training, load_pipeline
from acdc_export.errors import CheckpointError, TrainingError, UsageError
from acdc_export.pair import Pair
from acdc_export.progress import Progress
from acdc_export.training import loaders, loop, rehearse, train

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pipeline(tmp_path):
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, 90)
    x = generator.normal(size=(90, 1, 6, 6)) + y[:, None, None, None]  # brightness is the class
    np.savez(tmp_path / "bright.npz", x=x, y=y)
    digits = load_pipeline("digits")
    return replace(
        digits,
        name="bright",
        model=Model("residual_cnn", {"channels": 1, "width": 4, "blocks": 1, "classes": 3}),
        data=replace(digits.data, train=str(tmp_path / "bright.npz")),
        training=Training(batch_size=16, learning_rate=0.05, momentum=0.9, shift=1),
        schedule=ScheduleTable(warmup=2, sparse=1, dense=1, cycles=1, last_sparse=1, last_dense=2, final_sparse=3),
        pattern=Pattern(sparsity=0.5, exclude=("stem.*",)),
    )


class Recorder(Progress):
    def __init__(self):
        self.tasks, self.details = [], []

    def task(self, description, total):
        self.tasks.append((description, total))
        recorder = self

        class Task:
            def __enter__(self):
                return lambda amount=1.0, detail="": recorder.details.append(detail)

            def __exit__(self, *_):
                return None

        return Task()


@pytest.mark.train
def test_a_pipeline_trains_both_halves(pipeline, tmp_path):
    torch.manual_seed(123)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    progress = Recorder()
    pair = train(pipeline, tmp_path / "pair", progress)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads

    record = Pair.load(tmp_path / "pair").record
    assert (record.name, record.seed, record.pipeline) == ("bright", 0, pipeline.text)
    assert record.metrics["sparse"]["training_accuracy"] > 0.8
    assert record.metrics["dense"]["training_accuracy"] > 0.8
    assert record.pattern.sparsity == 0.5
    assert "stem.0.weight" not in record.pattern.layers
    assert pair.reference.inputs["input"].shape == (64, 1, 6, 6)

    assert progress.tasks == [("Training bright", 13)]
    assert [detail.split(",")[0] for detail in progress.details] == [
        *["dense"] * 2, "50% sparse", "dense", "50% sparse", *["dense"] * 2, *["50% sparse"] * 3, *["dense"] * 3,
    ]  # fmt: skip
    assert ["twin" in detail for detail in progress.details] == [False] * 10 + [True] * 3

    torch.manual_seed(456)
    train(pipeline, tmp_path / "again")
    for half in ("sparse", "dense"):
        weights, again = (load_file(tmp_path / name / f"{half}.safetensors") for name in ("pair", "again"))
        assert all(np.array_equal(weights[key], again[key]) for key in weights)


def test_the_judged_split_is_not_read(pipeline, tmp_path, monkeypatch):
    read = []
    load = loop.data.load
    monkeypatch.setattr(loop.data, "load", lambda spec: read.append(spec) or load(spec))
    monkeypatch.setattr(loop.ACDC, "save_pair", lambda self, *_, **__: None)
    train(pipeline, tmp_path / "pair")
    assert read == [pipeline.data.train]


def test_the_rate_warms_up_and_then_falls_to_zero(pipeline, tmp_path, monkeypatch):
    rates = []
    monkeypatch.setattr(
        loop._Trainer, "steps", lambda self, _: (1.0, rates.append(self.optimizer.param_groups[0]["lr"]) or 1.0)
    )
    monkeypatch.setattr(loop.ACDC, "save_pair", lambda self, *_, **__: None)
    pipeline = replace(pipeline, training=replace(pipeline.training, learning_rate=1.0, warmup_epochs=2))
    with pytest.warns(UserWarning, match="before `optimizer.step"):  # there are no steps here
        train(pipeline, tmp_path / "pair")
    cosine = [0.5 * (1 + np.cos(np.pi * epoch / 8)) for epoch in range(8)]
    np.testing.assert_allclose(rates, [0.5, 1.0, *cosine, *cosine[-3:]])


def test_a_loss_that_is_not_finite_names_epoch_and_phase(pipeline, tmp_path):
    pipeline = replace(pipeline, training=replace(pipeline.training, learning_rate=1e30))
    with pytest.raises(TrainingError, match=r"loss is (nan|inf) in epoch 0, a dense one of the sparse half"):
        train(pipeline, tmp_path / "pair")
    assert not (tmp_path / "pair").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": Model("residual_cnn", {"channels": 3, "width": 4, "blocks": 1, "classes": 3})}, "can't take"),
        ({"model": Model("residual_cnn", {"channels": 1, "width": 4, "blocks": 1, "classes": 2})}, "labels up to 2"),
        ({"model": Model("residual_cnn", {"channels": 1})}, "'width' is missing"),
        ({"pattern": Pattern(sparsity=0.5, exclude=("body",))}, "excludes nothing"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(pipeline, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(loop._Trainer, "steps", lambda *_: pytest.fail("trained"))
    with pytest.raises(UsageError, match=message):
        train(replace(pipeline, **change), tmp_path / "pair")


def test_shifts_move_each_image_as_a_whole():
    torch.manual_seed(0)
    images = torch.zeros(200, 2, 5, 5)
    images[:, :, 2, 2] = torch.tensor([1.0, 2.0])
    moved = loaders.shifted(images, 1)
    assert moved.shape == images.shape
    places = moved[:, 0].flatten(1).argmax(1)
    assert set(places.tolist()) == {6, 7, 8, 11, 12, 13, 16, 17, 18}
    assert torch.equal(moved[:, 1], 2 * moved[:, 0])
    assert (moved.flatten(1).sum(1) == 3).all()
    bright = torch.ones(1, 1, 4, 4)
    assert torch.equal(loaders.shifted(bright, 3), bright)  # the border is repeated
    assert loaders.shifted(images, 0) is images


def test_only_images_are_shifted(pipeline, tmp_path):
    np.savez(tmp_path / "flat.npz", x=np.zeros((9, 4), dtype=np.float32), y=np.zeros(9, dtype=int))
    pipeline = replace(pipeline, data=replace(pipeline.data, train=str(tmp_path / "flat.npz")))
    with pytest.raises(UsageError, match="only images"):
        train(pipeline, tmp_path / "pair")


def test_a_schedule_may_count_in_steps(pipeline, tmp_path):
    pipeline = replace(pipeline, schedule=ScheduleTable(phases=(7, 5, 6, 4), unit="step"))
    progress = Recorder()
    record = train(pipeline, tmp_path / "pair", progress).record
    assert progress.tasks == [("Training bright", 26)]
    assert [(phase.start, phase.end) for phase in record.history.phases] == [(0, 7), (7, 12), (12, 18), (18, 22)]
    assert record.history.unit == "step"
    assert [epoch.index for epoch in record.history.epochs] == [4, 9, 14, 19, 21, 19, 21]  # five steps are an epoch


def test_a_smaller_last_batch_is_kept_where_it_is_asked_for(pipeline, tmp_path, monkeypatch):
    sizes, forward = [], loop._Trainer._forward
    monkeypatch.setattr(
        loop._Trainer, "_forward", lambda self, inputs: sizes.append(len(inputs[0])) or forward(self, inputs)
    )
    pipeline = replace(pipeline, schedule=ScheduleTable(phases=(1, 1)))
    for drop_last, epoch in ((True, [16] * 5), (False, [16] * 5 + [10])):
        sizes.clear()
        settings = replace(pipeline.training, drop_last=drop_last)
        train(replace(pipeline, training=settings), tmp_path / f"pair-{drop_last}")
        assert sizes == epoch * 3  # a dense epoch, and one for each half


def test_an_epoch_in_steps_has_the_smaller_last_batch_too(pipeline, tmp_path):
    settings = replace(pipeline.training, drop_last=False)
    schedule = ScheduleTable(phases=(7, 6), unit="step")
    record = train(replace(pipeline, training=settings, schedule=schedule), tmp_path / "pair").record
    assert [epoch.index for epoch in record.history.epochs] == [5, 11, 12, 11, 12]  # six steps are an epoch


def test_the_mean_loss_is_that_of_a_sample(pipeline):
    torch.manual_seed(0)
    settings = replace(pipeline.training, drop_last=False, shift=0, learning_rate=1e-30)
    loader = loop._loader(replace(pipeline, training=settings))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    trainer = loop._Trainer(model, torch.optim.SGD(model.parameters(), 1e-30), scaler, None, loader, settings)
    loss, _ = trainer.steps(loader.steps)
    x, y = loader.inputs["input"], loader.labels
    assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(model(x), y).detach()), rel=1e-5)


def test_a_last_batch_of_one_sample_is_left_out_and_said(pipeline, tmp_path):
    class Saying(Recorder):
        def say(self, text):
            said.append(text)

    said = []
    with np.load(pipeline.data.train) as data:
        np.savez(tmp_path / "more.npz", x=data["x"][:81], y=data["y"][:81])  # 5 batches of 16, and one
    settings = replace(pipeline.training, drop_last=False)
    pipeline = replace(pipeline, data=replace(pipeline.data, train=str(tmp_path / "more.npz")), training=settings)
    pipeline = replace(pipeline, schedule=ScheduleTable(phases=(1, 1)))
    train(pipeline, tmp_path / "pair", Saying())
    assert any("each epoch leaves out another one" in text for text in said)


def test_batches_of_one_sample_that_a_network_refuses_are_a_users_error(pipeline, tmp_path):
    np.savez(tmp_path / "single.npz", x=np.zeros((3, 1, 2, 2), dtype=np.float32), y=np.array([0, 1, 2]))
    settings = replace(pipeline.training, batch_size=1, shift=0)
    pipeline = replace(pipeline, data=replace(pipeline.data, train=str(tmp_path / "single.npz")), training=settings)
    arguments = {**pipeline.model.arguments, "stem_stride": 2}  # a pixel is left
    with pytest.raises(UsageError, match="can't be trained on batches of one sample") as caught:
        train(replace(pipeline, model=Model("residual_cnn", arguments)), tmp_path / "pair")
    assert "batch_size" in caught.value.remedy


def test_milestones_lower_the_rate_after_their_epoch(pipeline):
    settings = replace(pipeline.training, milestones=(2, 4), warmup_epochs=0)
    rates = [loop._rate(settings, 8, epoch) for epoch in range(7)]
    np.testing.assert_allclose(rates, [1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_a_run_has_to_be_as_long_as_its_schedule(pipeline, tmp_path):
    pipeline = replace(pipeline, training=replace(pipeline.training, epochs=9))
    with pytest.raises(UsageError, match=r"takes 10 epochs, and epochs = 9 under \[training\]"):
        train(pipeline, tmp_path / "pair")


@pytest.mark.train
@pytest.mark.slow
@pytest.mark.parametrize("stop", [4, 11])
@pytest.mark.parametrize("drop_last", [True, False])
def test_an_interrupted_run_goes_on_and_ends_with_the_same_pair(pipeline, tmp_path, stop, drop_last):
    """The run has everything that has a state: shifts, clipping, a running average, batch norms estimated anew."""
    settings = replace(pipeline.training, clip_norm=1.0, average=0.9, reestimate_batch_norm=True, drop_last=drop_last)
    pipeline = replace(pipeline, training=settings)
    train(pipeline, tmp_path / "pair")

    class Interrupting(Recorder):
        def task(self, description, total):
            recorder, outer = self, super().task(description, total)

            class Task:
                def __enter__(self):
                    advance = outer.__enter__()

                    def interrupted(amount=1.0, detail=""):
                        advance(amount, detail)
                        if len(recorder.details) == stop:
                            raise KeyboardInterrupt

                    return interrupted

                def __exit__(self, *_):
                    return None

            return Task()

    with pytest.raises(KeyboardInterrupt):
        train(pipeline, tmp_path / "again", Interrupting())
    assert (tmp_path / "again.checkpoint").is_file()
    assert not (tmp_path / "again").exists()
    with pytest.raises(CheckpointError, match=r"another \[model\], \[data\], \[training\] or seed"):
        train(replace(pipeline, seed=1), tmp_path / "again")

    progress = Recorder()
    train(pipeline, tmp_path / "again", progress)
    assert len(progress.details) == 1 + 13 - (stop - 1)  # the epochs that were left, and a jump to where it goes on
    for half in ("sparse", "dense"):
        weights, again = (load_file(tmp_path / name / f"{half}.safetensors") for name in ("pair", "again"))
        assert all(np.array_equal(weights[key], again[key]) for key in weights)
    assert not (tmp_path / "again.checkpoint").exists()


def test_batch_norms_are_estimated_on_whole_batches(pipeline):
    """`update_bn` gives the last batch the weight of any other, though it may have few samples."""
    settings = replace(pipeline.training, drop_last=False, shift=0)
    loader = loop._loader(replace(pipeline, training=settings))
    trainer = loop._Trainer(torch.nn.Identity(), None, None, None, loader, settings)
    assert [len(batch) for batch in trainer._whole_batches()] == [16] * 5
    assert [len(batch) for batch in trainer._whole_batches()] == [16] * 5  # and the next epoch begins anew


@pytest.mark.slow
def test_batch_norms_estimated_anew_are_those_of_the_weights_that_are_kept(pipeline, tmp_path):
    settings = replace(pipeline.training, reestimate_batch_norm=True, shift=0)
    train(replace(pipeline, training=settings), tmp_path / "pair")
    train(replace(pipeline, training=replace(settings, reestimate_batch_norm=False)), tmp_path / "plain")
    anew, plain = (load_file(tmp_path / name / "sparse.safetensors") for name in ("pair", "plain"))
    assert all(np.array_equal(anew[key], plain[key]) == ("running" not in key and "tracked" not in key) for key in anew)


def test_a_rehearsal_takes_a_step_in_each_phase_and_leaves_nothing(pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    rehearsal = rehearse(replace(pipeline, pattern=Pattern(kind="2:4")))
    assert [kind for kind, _ in rehearsal.steps] == ["dense", "sparse", "dense", "sparse", "dense", "sparse", "twin"]
    assert all(seconds > 0 for _, seconds in rehearsal.steps)
    assert rehearsal.left_dense == {"stem.0": "1 input channels a filter are no multiple of 4"}
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.train
@pytest.mark.parametrize(
    ("name", "phases", "layers"),
    [
        pytest.param("resnet20-cifar10-90", 10, 20, marks=pytest.mark.slow),
        pytest.param("wideresnet-cifar100-90", 10, 29, marks=pytest.mark.slow),
        pytest.param("mobilenet-imagenet-75", 16, 28, marks=pytest.mark.slow),
        pytest.param("resnet50-imagenet-2to4", 16, 53, marks=pytest.mark.vision),
    ],
)
def test_the_papers_pipelines_can_be_tried_without_their_images(name, phases, layers, tmp_path, monkeypatch):
    """Each phase takes a step, and the real exporter exports the result."""
    pipeline = load_pipeline(name)
    if "torchvision" in pipeline.model.name:
        pytest.importorskip("torchvision", reason="torchvision is not installed")
    monkeypatch.chdir(tmp_path)  # where there is no data set
    rehearsal = rehearse(pipeline)
    assert [kind for kind, _ in rehearsal.steps] == [*["dense", "sparse"] * (phases // 2), "twin"]
    assert all(np.isfinite(loss) for _, loss in rehearsal.steps)
    assert len(rehearsal.layers) == layers
    share = 0.5 if pipeline.pattern.kind == "2:4" else pipeline.pattern.sparsity
    assert all(share <= layer.zeros / layer.total < share + 0.01 for layer in rehearsal.layers.values())
    assert not [*tmp_path.iterdir()]


@pytest.mark.train
@pytest.mark.slow
def test_the_example_of_a_loop_of_ones_own_runs(tmp_path, capsys):
    example = runpy.run_path(str(ROOT / "examples" / "own_loop.py"))
    pair = example["main"](str(tmp_path / "mine"))
    assert "dense  half" in capsys.readouterr().out
    accuracy = {half: metrics["accuracy"] for half, metrics in pair.record.metrics.items()}
    assert min(accuracy.values()) > 0.94
    assert 0.9 <= pair.record.pattern.achieved < 0.91


def test_the_pair_holds_the_names_of_the_classes(pipeline, tmp_path):
    arrays = dict(np.load(tmp_path / "bright.npz"))
    np.savez(tmp_path / "bright.npz", **arrays, classes=["dark", "grey", "light"])
    assert train(pipeline, tmp_path / "pair").record.classes == ("dark", "grey", "light")


def test_a_listing_of_fewer_classes_than_logits_is_refused_before_training(pipeline, tmp_path):
    """Which logits were theirs would be lost: such data could not be judged by."""
    arrays = np.load(tmp_path / "bright.npz")
    np.savez(tmp_path / "bright.npz", x=arrays["x"], y=arrays["y"] % 2, classes=["even", "odd"])
    with pytest.raises(UsageError, match="tells 3 classes apart, and .* has 2"):
        train(pipeline, tmp_path / "pair")
