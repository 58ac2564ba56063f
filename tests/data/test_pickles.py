import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_cifar10 import dump_array, dump_python2

from deepres.data.pickles import decode_batch

NUM = 4
RECORDS = np.random.default_rng(1).integers(0, 10, (NUM, 3073), np.uint8)
GOOD = dump_python2(RECORDS.tobytes())


def python3_dump(protocol: int, **changes: object) -> bytes:
    batch = {b"labels": RECORDS[:, 0].tolist(), b"data": np.ascontiguousarray(RECORDS[:, 1:]), **changes}
    return pickle.dumps(batch, protocol=protocol)


def test_the_emitter_writes_what_the_standard_unpickler_reads():
    batch = pickle.loads(GOOD, encoding="bytes")
    assert sorted(batch) == [b"batch_label", b"data", b"labels"]
    assert isinstance(batch[b"data"], np.ndarray)
    np.testing.assert_array_equal(batch[b"data"], RECORDS[:, 1:])
    assert batch[b"labels"] == RECORDS[:, 0].tolist()
    assert b"_codecs" not in GOOD


@pytest.mark.parametrize("keys", [bytes, str])
def test_python_2_batch(keys: type):
    records = decode_batch(dump_python2(RECORDS.tobytes(), keys=keys), NUM)
    assert records.dtype == np.uint8
    np.testing.assert_array_equal(records, RECORDS)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_batch_dumped_anew_by_python_3(protocol: int):
    np.testing.assert_array_equal(decode_batch(python3_dump(protocol), NUM), RECORDS)


def test_both_spellings_of_numpys_core():
    for old, new in ((b"numpy.core", b"numpy._core"), (b"numpy._core", b"numpy.core")):
        respelt = GOOD.replace(old, new)
        np.testing.assert_array_equal(decode_batch(respelt, NUM), RECORDS)


class Call:
    """Pickles to a call of ``function(*args)``."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


def global_call(module: bytes, name: bytes, argument: bytes) -> bytes:
    text = pickle.BINUNICODE + struct.pack("<I", len(argument)) + argument
    return pickle.PROTO + b"\x02" + b"c%b\n%b\n" % (module, name) + text + pickle.TUPLE1 + pickle.REDUCE + b"."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (b"os", b"system"),
        (b"posix", b"system"),
        (b"subprocess", b"getoutput"),
        (b"__builtin__", b"eval"),
        (b"builtins", b"exec"),
        (b"builtins", b"getattr"),
        (b"_codecs", b"encode"),
        (b"numpy", b"load"),
        (b"numpy.core.multiarray", b"fromfile"),
        (b"numpy", b"ndarray.tofile"),
        (b"deepres.data.pickles", b"io.open"),
    ],
)
def test_any_other_name_is_refused_and_named(module: bytes, name: bytes, tmp_path: Path):
    trace = tmp_path / "trace"
    with pytest.raises(pickle.UnpicklingError, match="refused") as caught:
        decode_batch(global_call(module, name, f"touch {trace}".encode()), NUM)
    assert f"{module.decode()}.{name.decode()}" in str(caught.value)
    assert not trace.exists()


def test_hostile_call_hidden_in_a_good_batch_does_not_run(tmp_path: Path):
    trace = tmp_path / "trace"
    for protocol in (3, 4, 5):
        hostile = python3_dump(protocol, extra=Call(Path.touch, trace))
        with pytest.raises(pickle.UnpicklingError, match="refused"):
            decode_batch(hostile, NUM)
    assert not trace.exists()


def test_name_with_a_line_break_stays_on_one_line():
    hostile = pickle.PROTO + b"\x04" + pickle.SHORT_BINUNICODE + b"\x03a\nb" + pickle.SHORT_BINUNICODE + b"\x01c"
    with pytest.raises(pickle.UnpicklingError) as caught:
        decode_batch(hostile + pickle.STACK_GLOBAL + pickle.STOP, NUM)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not a pickle",
        GOOD[:-1],
        GOOD[: len(GOOD) // 2],
        pickle.PROTO + b"\xff.",
        pickle.PROTO + b"\x02" + pickle.POP + pickle.STOP,
        pickle.PROTO + b"\x04" + pickle.BINBYTES8 + struct.pack("<Q", 2**62) + b".",
        pickle.PROTO + b"\x05" + pickle.BYTEARRAY8 + struct.pack("<Q", 2**62) + b".",
        pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.EMPTY_DICT + pickle.BUILD + pickle.STOP,
        pickle.PROTO + b"\x02cnumpy\ndtype\n" + pickle.EMPTY_DICT + pickle.BUILD + pickle.STOP,
        pickle.PROTO + b"\x02cnumpy\nndarray\n)" + pickle.NEWOBJ + pickle.STOP,
        pickle.PROTO + b"\x02" + pickle.EXT1 + b"\x01" + pickle.STOP,
        pickle.PROTO + b"\x02" + b"Pname\n" + pickle.STOP,
    ],
)
def test_malformed_pickles_are_refused(raw: bytes):
    with pytest.raises(pickle.UnpicklingError):
        decode_batch(raw, NUM)


def test_memo_index_that_would_claim_all_memory_is_refused():
    bomb = pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.LONG_BINPUT + struct.pack("<I", 2**31) + b"."
    with pytest.raises(pickle.UnpicklingError, match="memo"):
        decode_batch(bomb, NUM)


PIXELS = RECORDS[:, 1:].tobytes()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (pickle.dumps([1]), "no dictionary"),
        (pickle.dumps({}), "no array"),
        (pickle.dumps({b"data": PIXELS, b"labels": [0] * NUM}), "no array"),
        (dump_python2(RECORDS[:3].tobytes()), "no array `data` of shape"),
        (dump_python2(RECORDS.tobytes(), array=dump_array(PIXELS, (NUM, 3, 1024))), "no array `data` of shape"),
        (dump_python2(RECORDS.tobytes(), array=dump_array(PIXELS[1:], (NUM, 3072))), "does not fit"),
        (dump_python2(RECORDS.tobytes(), array=dump_array(PIXELS, (NUM, 3072), dtype=b"f8")), "not of uint8"),
        (dump_python2(RECORDS.tobytes(), array=dump_array(PIXELS, (NUM, 3072), dtype=b"O")), "not of uint8"),
        (
            dump_python2(RECORDS.tobytes(), array=dump_array(PIXELS, (NUM, 3072), empty_shape=7)),
            "something else than an empty array",
        ),
        (
            dump_python2(RECORDS.tobytes(), array=dump_array(PIXELS, (NUM, 3072), fortran=pickle.NEWTRUE)),
            "not of uint8 in C order",
        ),
        (dump_python2(RECORDS.tobytes(), labels=[0] * (NUM - 1)), "no list `labels`"),
        (dump_python2(RECORDS.tobytes(), labels=[0, 1, 2, 10]), "labels other than"),
        (dump_python2(RECORDS.tobytes(), labels=[0, 1, 2, -1]), "labels other than"),
        (pickle.dumps({b"data": np.zeros((NUM, 3072), np.uint8), b"labels": [True] * NUM}, 4), "labels other than"),
        (pickle.dumps({b"data": np.zeros((NUM, 3072), np.uint8), b"labels": (0,) * NUM}, 4), "no list `labels`"),
    ],
)
def test_content_that_is_no_batch_is_refused(raw: bytes, message: str):
    with pytest.raises(pickle.UnpicklingError, match=message):
        decode_batch(raw, NUM)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=4), st.booleans())
def test_mutated_pickle_is_decoded_or_refused_but_never_anything_else(place: int, patch: bytes, at_end: bool):
    place = len(GOOD) - 1 - place % 60 if at_end else place
    mutated = GOOD[:place] + patch + GOOD[place + len(patch) :]
    try:
        records = decode_batch(mutated, NUM)
    except pickle.UnpicklingError:
        return
    assert records.shape == (NUM, 3073)
    assert records.dtype == np.uint8
    assert records[:, 0].max() <= 9


def test_numpy_is_not_reached_from_the_pickle(monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object) -> None:
        raise AssertionError("the pickle reached numpy")

    monkeypatch.setattr("numpy._core.multiarray._reconstruct", fail)
    with pytest.raises(AssertionError, match="reached numpy"):
        pickle.loads(GOOD.replace(b"numpy.core", b"numpy._core"), encoding="bytes")
    np.testing.assert_array_equal(decode_batch(GOOD, NUM), RECORDS)
