from __future__ import annotations

import pickle

import pytest

from tudsr_runtime import errors

EXIT_CODES = {
    "UsageError": 2,
    "InputError": 3,
    "BatchError": 4,
    "BundleError": 5,
    "DeviceError": 6,
    "MemoryExhausted": 7,
    "OutputError": 8,
    "NotFiniteError": 9,
    "TrainingError": 10,
}


def test_every_error_has_its_documented_exit_code() -> None:
    # Other packages' are known as soon as they are imported, and a server's are no command's.
    kinds = [kind for kind in errors.TudsrError.__subclasses__() if kind.__module__ == errors.__name__]
    found = {kind.__name__: kind.exit_code for kind in kinds}
    assert found == EXIT_CODES
    tree = [line for line in (errors.__doc__ or "").splitlines() if "──" in line]
    assert {line.split()[1]: int(line.split()[2]) for line in tree} == EXIT_CODES


def test_message_is_one_line_and_cannot_steer_a_terminal() -> None:
    error = errors.InputError("bad\n  file \x1b[2Jname\udcff", hint="rename it")
    assert str(error) == "bad file ?[2Jname?"
    assert error.hint == "rename it"


@pytest.mark.parametrize(
    "value", [10**400, 10**5000, "x" * 400, ["x" * 400] * 400], ids=["400", "5000", "text", "list"]
)
def test_what_is_quoted_is_short_and_what_is_short_is_whole(value: object) -> None:
    assert len(errors.quoted(value)) < 600
    for short in (-(2**63), 0.1, "a" * 60, None, ("1", 2)):
        assert errors.quoted(short) == repr(short)


@pytest.mark.parametrize("hint", [None, "more memory"])
def test_errors_cross_process_boundaries(hint: str | None) -> None:
    copy = pickle.loads(pickle.dumps(errors.MemoryExhausted("8 GB needed", hint=hint)))
    assert (type(copy), str(copy), copy.hint) == (errors.MemoryExhausted, "8 GB needed", hint)
