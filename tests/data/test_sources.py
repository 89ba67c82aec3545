import sys

import numpy as np
import pytest

from acdc_export.data import Data, load
from acdc_export.errors import RuntimeUnavailable, UsageError

X = np.arange(14, dtype=np.float32).reshape(7, 2)
Y = np.arange(7) % 3


def save(path, **arrays):
    np.savez(path / "some.npz", **arrays)
    return load(str(path / "some.npz"))


def test_digits_are_split_by_parity_of_the_index():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    train, test = load("digits:train"), load("digits:test")
    assert (train.count, test.count) == (899, 898)
    (x, y), *_ = test.batches(1000)
    assert (x.dtype, x.shape, y.dtype) == (np.float32, (898, 1, 8, 8), np.int64)
    np.testing.assert_array_equal(y, labels[1::2])
    np.testing.assert_allclose(x[5, 0].ravel() * 6.017 + 4.884, images[11], atol=1e-4)
    every = np.concatenate([next(train.batches(1000))[0], x])
    assert abs(every.mean()) < 1e-3
    assert abs(every.std() - 1) < 1e-3


@pytest.mark.parametrize("count", [1, 3, 7, 20])
def test_a_sample_is_spread_over_all_that_is_there(tmp_path, count):
    """Files may be sorted by class."""
    data = save(tmp_path, x=X, y=np.arange(7))
    sample = data.sample(count)
    labels = [label for _, y in sample.batches(2) for label in y.tolist()]
    assert labels == [index * 7 // min(count, 7) for index in range(min(count, 7))]
    assert sample.count == len(labels)


def test_a_sample_of_what_can_only_be_read_in_order_is_its_beginning():
    data = Data.of([(X[:3], Y[:3]), (X[3:], Y[3:])])
    assert [len(y) for _, y in data.sample(5).batches(2)] == [2, 2, 1]
    assert [len(y) for _, y in data.sample(50).batches(10)] == [7]


def test_digits_say_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(RuntimeUnavailable, match="pip install"):
        load("digits:train")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digits", "names no part of digits"),
        ("digits:tset", "did you mean 'test'"),
        ("digts", "did you mean 'digits'"),
        ("imagefolde", "did you mean 'imagefolder'"),
        ("digts:train", r"can't be imported \(did you mean 'digits'\?\)"),
        ("nowhere.npz", "no file nowhere.npz"),
        ("./nowhere", "is no data"),
        ("", "is no data"),
        ("numpy:nowhere", "no callable 'nowhere'"),
        ("numpy:pi", "no callable 'pi'"),
    ],
)
def test_unknown_specs_are_refused(spec, message):
    with pytest.raises(UsageError, match=message):
        load(spec)


@pytest.mark.parametrize(("size", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (100, [7])])
def test_batches_have_the_size_asked_for(tmp_path, size, sizes):
    data = save(tmp_path, x=X, y=Y)
    assert data.count == 7
    for _ in range(2):  # each reading starts anew
        batches = list(data.batches(size))
        assert [len(y) for _, y in batches] == sizes
        np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), X)
        np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), Y)
    with pytest.raises(UsageError, match="0 rows"):
        next(data.batches(0))


def test_inputs_may_be_named(tmp_path):
    data = save(tmp_path, left=X, right=-X, labels=Y)
    batches = list(data.batches(4))
    assert [set(x) for x, _ in batches] == [{"left", "right"}] * 2
    np.testing.assert_array_equal(batches[1][0]["right"], -X[4:])
    np.testing.assert_array_equal(batches[1][1], Y[4:])


def test_numbers_become_what_networks_take(tmp_path):
    x, y = next(save(tmp_path, x=X.astype(np.float64), y=Y.astype(np.uint8)).batches(9))
    assert (x.dtype, y.dtype) == (np.float32, np.int64)
    x, _ = next(save(tmp_path, x=X.astype(np.uint8), y=Y).batches(9))
    assert x.dtype == np.uint8


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "labels are missing"),
        ({"images": X, "targets": Y}, "holds images, targets; labels are missing"),
        ({"labels": Y}, "labels are missing"),
        ({"x": X, "y": Y[:5]}, "x has 7 rows, and there are 5 labels"),
        ({"x": np.where(X > 12, np.nan, X), "y": Y}, "1 values of x are NaN or infinite"),
        ({"x": np.where(X > 11, np.inf, X), "y": Y}, "2 values of x"),
        ({"x": X.astype(np.float64) * 1e300, "y": Y}, "NaN or infinite"),
        ({"x": X[:0], "y": Y[:0]}, "no samples"),
        ({"x": X, "y": Y.astype(np.float32)}, "labels are float32"),
        ({"x": X, "y": np.eye(7, dtype=int)}, r"labels are int64 \[7, 7\]"),
        ({"x": X, "y": Y - 1}, "the labels are"),
        ({"x": np.array(["a"] * 7), "y": Y}, "not numbers"),
        ({"x": np.float32(3), "y": Y}, "x has no rows"),
    ],
)
def test_unsound_arrays_are_refused(tmp_path, arrays, message):
    with pytest.raises(UsageError, match=message) as caught:
        save(tmp_path, **arrays)
    assert "some.npz" in str(caught.value)


def test_files_that_are_no_arrays_are_refused(tmp_path):
    with pytest.raises(UsageError, match="holds Python objects"):
        save(tmp_path, x=np.array([{}] * 7, dtype=object), y=Y)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UsageError, match="can't be read"):
        load(str(tmp_path / "text.npz"))
    np.save(tmp_path / "single.npy", X)
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    with pytest.raises(UsageError, match="can't be read"):
        load(str(tmp_path / "single.npz"))
    content = bytearray((tmp_path / "some.npz").read_bytes())
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match="can't be read"):
        load(str(tmp_path / "cut.npz"))


@pytest.fixture
def factory(tmp_path, monkeypatch):
    (tmp_path / "my_sources_of_test_sources.py").write_text(
        "import numpy as np\n"
        "calls = 0\n"
        "def good():\n"
        "    global calls\n"
        "    calls += 1\n"
        "    for start in range(0, 10, 4):\n"
        "        x = np.arange(start, min(start + 4, 10), dtype=np.float32)\n"
        "        yield {'a': x[:, None]}, x.astype(int).tolist()\n"
        "def failing():\n    yield np.zeros((1, 2)), [0]\n    raise OSError('disk\\nfull')\n"
        "def empty():\n    return []\n"
        "def nothing():\n    return None\n"
        "def bare():\n    return [np.zeros(3)]\n"
        "def uneven():\n    return [(np.zeros((2, 3)), [0, 1]), (np.zeros((2, 4)), [0, 1])]\n"
        "def renamed():\n    return [({'a': np.zeros(2)}, [0, 1]), ({'b': np.zeros(2)}, [0, 1])]\n"
        "def poisoned():\n    return [(np.zeros((2, 3)), [0, 1]), (np.full((2, 3), np.nan), [0, 1])]\n"
    )
    monkeypatch.chdir(tmp_path)
    return "my_sources_of_test_sources:{}".format


def test_a_factory_is_called_for_each_reading_and_rebatched(factory):
    data = load(factory("good"))
    assert data.count is None
    for _ in range(2):
        batches = list(data.batches(3))
        assert [len(y) for _, y in batches] == [3, 3, 3, 1]
        assert [y.tolist() for _, y in batches] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
        np.testing.assert_array_equal(batches[1][0]["a"], [[3], [4], [5]])
    assert sys.modules[factory("good").partition(":")[0]].calls == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "no samples"),
        ("failing", "can't be read: OSError: disk"),
        ("nothing", "can't be read: TypeError: 'NoneType' object is not iterable"),
        ("bare", "not pairs of inputs and labels"),
        ("uneven", "differ between its batches"),
        ("renamed", "differ between its batches"),
        ("poisoned", "3 values|6 values"),
    ],
)
def test_unsound_factories_are_refused(factory, name, message):
    with pytest.raises(UsageError, match=message):
        list(load(factory(name)).batches(100))


def test_a_factory_that_was_not_named_by_the_user_is_not_imported(factory):
    spec = factory("good")
    sys.modules.pop(spec.partition(":")[0], None)
    with pytest.raises(UsageError, match="would run code") as caught:
        load(spec, trusted=False)
    assert f"--data {spec}" in caught.value.remedy
    assert spec.partition(":")[0] not in sys.modules
    assert load("digits:test", trusted=False).count == 898


def test_batches_in_python_are_data_too():
    torch = pytest.importorskip("torch")
    samples = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    for source in (
        torch.utils.data.DataLoader(samples, batch_size=2),
        [(X[:3], Y[:3]), (X[3:], Y[3:])],
        ((X[start : start + 2], Y[start : start + 2]) for start in range(0, 7, 2)),
    ):
        data = Data.of(source)
        for _ in range(2):
            batches = list(data.batches(4))
            assert [len(y) for _, y in batches] == [4, 3]
            np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), X)
