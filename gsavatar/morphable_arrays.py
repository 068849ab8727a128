"""Named arrays out of a user's model file, read without running anything that the file says.

FLAME is published as a Python 2 pickle, and a pickle may name any function to be called. Here the
few names that such a file needs (numpy's arrays, scipy's CSC matrix, chumpy's wrapper) stand for
records that only keep what they are given; arrays are rebuilt from them afterwards. Any other name
is refused before anything of it is looked up.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gsavatar.errors import InputError

MAX_BYTES = 2 << 30
"""Above the size of any published model; a larger file is not read at all."""
MAX_DIMENSIONS = 4
KINDS = "fiub"
"""Kinds of numbers a model may consist of: floating, signed, unsigned, truth values."""


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of these names in a ``.pkl`` or ``.npz`` file; sparse ones are made dense.

    Raises ``InputError``, naming file and cure, if the file is missing, of another kind, holds
    anything but data, or lacks a name.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path.") from None
    if size > MAX_BYTES:
        raise InputError(f"{path}: has {size} bytes, more than any model; name the model's file.")
    if path.suffix.lower() not in (".pkl", ".npz"):
        raise InputError(f"{path}: is neither .pkl nor .npz; name the published file, or an .npz.")
    read = _from_npz if path.suffix.lower() == ".npz" else _from_pickle
    found = read(path, names)
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(
            f"{path}: has no array {missing[0]}; use the published model file, or an .npz with "
            f"{', '.join(names)}."
        )
    return found


def _from_npz(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in names if name in data.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: is no .npz of plain arrays ({reason}); write it again with numpy.savez."
        ) from None


def _from_pickle(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            content = _Reader(file).load()
        if not isinstance(content, dict):
            raise _Damaged(f"a dictionary was expected, got {type(content).__name__}")
        return {name: _array(content[name]) for name in names if name in content}
    except _Refused as refused:
        raise InputError(
            f"{path}: asks for {refused}, which is no data, and was refused; convert a file you "
            f"trust to an .npz with {', '.join(names)}."
        ) from None
    except _UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path}: is no model file that can be read ({reason}); get it again, or convert it "
            f"to an .npz with {', '.join(names)}."
        ) from None


class _Refused(Exception):
    """A name that a data file has no business to ask for."""


class _Damaged(Exception):
    """Data that does not fit together."""


_UNREADABLE = (
    pickle.UnpicklingError, EOFError, _Damaged, ValueError, TypeError, AttributeError, IndexError,
    KeyError, ImportError, MemoryError, OverflowError, RecursionError, OSError,
)  # fmt: skip
"""What Python's pickle reader may raise on a damaged file."""


class _Record:
    """Keeps what a pickle says about an object; does nothing with it."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Type(_Record):
    """numpy.dtype."""


class _Array(_Record):
    """numpy.ndarray made by ``_reconstruct``, its content in the state."""


class _Buffer(_Record):
    """numpy.ndarray made from its bytes (pickle protocol 5)."""


class _Scalar(_Record):
    """A numpy scalar."""


class _Sparse(_Record):
    """scipy.sparse.csc_matrix."""


class _Wrapped(_Record):
    """chumpy.ch.Ch: its values are in ``x``."""


class _Other(_Record):
    """Bookkeeping of chumpy's (sets, ordered dictionaries) that nobody reads."""


def _restored(kind: Any, *_: Any) -> _Record:
    """What Python 2 writes for an object of a class: the class, its base and no state yet."""
    if not (isinstance(kind, type) and issubclass(kind, _Record)):
        raise _Damaged("an object of an unknown class")
    return kind()


def _bytes(text: Any, encoding: Any = "latin1") -> bytes:
    """Bytes that Python 3 wrote as text for protocol 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Damaged("bytes in an unknown encoding")
    return text.encode("latin1")


def _no_bytes(*arguments: Any) -> bytes:
    """The content of an empty array in protocols 0 to 2."""
    if arguments:
        raise _Damaged("bytes made of something else")
    return b""


def _array_record(*_: Any) -> _Record:
    return _Array()


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    **{(module, "_reconstruct"): _array_record for module in _MULTIARRAY},
    **{(module, "scalar"): _Scalar for module in _MULTIARRAY},
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
    ("numpy._core.numeric", "_frombuffer"): _Buffer,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("scipy.sparse.csc", "csc_matrix"): _Sparse,
    ("scipy.sparse._csc", "csc_matrix"): _Sparse,
    ("chumpy.ch", "Ch"): _Wrapped,
    ("copy_reg", "_reconstructor"): _restored,
    ("copyreg", "_reconstructor"): _restored,
    ("_codecs", "encode"): _bytes,
    ("__builtin__", "bytes"): _no_bytes,
    ("__builtin__", "object"): _Other,
    ("builtins", "object"): _Other,
    ("__builtin__", "set"): _Other,
    ("builtins", "set"): _Other,
    ("collections", "OrderedDict"): _Other,
}


class _Reader(pickle.Unpickler):
    """A reader that finds none but the names above."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, fix_imports=False, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name."""
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}"[:80]) from None

    def persistent_load(self, pid: Any) -> Any:
        """References outside the file are none of its data."""
        raise _Refused("an object outside the file")


def _array(value: Any) -> np.ndarray:
    """The array that records describe."""
    if isinstance(value, _Wrapped):
        state = value.state
        if not isinstance(state, dict) or "x" not in state:
            raise _Damaged("a chumpy object without values")
        return _array(state["x"])
    if isinstance(value, _Array):
        _, shape, kind, fortran, content = _five(value.state)
        return _rebuilt(content, kind, shape, "F" if fortran else "C")
    if isinstance(value, _Buffer):
        content, kind, shape, order = _items(value.arguments, 4)
        return _rebuilt(content, kind, shape, "F" if order == "F" else "C")
    if isinstance(value, _Scalar):
        kind, content = _items(value.arguments, 2)
        return _rebuilt(content, kind, (), "C")
    if isinstance(value, _Sparse):
        return _dense(value.state)
    if isinstance(value, (int, float, list)):
        return np.asarray(value, dtype=np.float64)
    raise _Damaged(f"an array was expected, got {type(value).__name__}")


def _items(value: Any, count: int) -> tuple[Any, ...]:
    if not isinstance(value, tuple) or len(value) != count:
        raise _Damaged(f"{count} values were expected")
    return value


def _five(state: Any) -> tuple[Any, ...]:
    """The state of an array; its oldest form has no version number in front."""
    if isinstance(state, tuple) and len(state) == 4:
        return (0, *state)
    return _items(state, 5)


def _rebuilt(content: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    plain = _number_type(kind)
    if isinstance(content, str):  # Python 2's bytes, read as Latin-1
        content = content.encode("latin1")
    if not isinstance(content, (bytes, bytearray)):
        raise _Damaged("an array without bytes")
    if not isinstance(shape, tuple) or len(shape) > MAX_DIMENSIONS:
        raise _Damaged("an array of strange shape")
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise _Damaged("an array of strange shape")
    flat = np.frombuffer(content, dtype=plain)
    return flat.reshape(shape, order=order).astype(plain.newbyteorder("="))


def _number_type(record: Any) -> np.dtype[Any]:
    """The type of the numbers of an array: ``f8`` and the like, in the byte order of the state."""
    if not isinstance(record, _Type) or not record.arguments:
        raise _Damaged("an array of unknown type")
    code = record.arguments[0]
    if not isinstance(code, str) or not code.isalnum() or code[0] not in KINDS or len(code) > 3:
        raise _Damaged(f"an array of type {str(code)[:20]!r}")
    state = record.state
    big = isinstance(state, tuple) and len(state) > 1 and state[1] == ">"
    return np.dtype(code).newbyteorder(">" if big else "<")


def _dense(state: Any) -> np.ndarray:
    """A dense array of a CSC matrix: column ``j`` owns the entries ``indptr[j]:indptr[j + 1]``."""
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict):
        state = state[0]
    if not isinstance(state, dict):
        raise _Damaged("a sparse matrix without content")
    shape = state.get("_shape", state.get("shape"))
    data, rows, starts = (_array(state.get(key)) for key in ("data", "indices", "indptr"))
    if not isinstance(shape, tuple) or len(shape) != 2 or len(starts) != int(shape[1]) + 1:
        raise _Damaged("a sparse matrix of strange shape")
    starts = starts.astype(np.int64)
    counts = starts[1:] - starts[:-1]
    rows = rows.astype(np.int64)
    if (counts < 0).any() or counts.sum() != len(data) or len(rows) != len(data):
        raise _Damaged("a sparse matrix whose parts do not fit")
    if len(rows) and not 0 <= rows.min() <= rows.max() < int(shape[0]):
        raise _Damaged("a sparse matrix with rows out of range")
    dense = np.zeros((int(shape[0]), int(shape[1])))
    np.add.at(dense, (rows, np.repeat(np.arange(len(counts)), counts)), data)
    return dense
