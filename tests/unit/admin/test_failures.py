"""Typed errors keep class, code, text and remedy across the wire."""

from __future__ import annotations

from enum import StrEnum

import pytest

from shared import errors
from shared.admin.codec import INTERNAL_ERROR, METHOD_NOT_FOUND, Failure, decode, encode
from shared.admin.failures import TEXT_MAX, error_of, failure_of, rpc_failure
from shared.errors import InvalidStateError, StorageError, UsageError, VmreplicaError

OURS = [member for member in vars(errors).values() if isinstance(member, type) and issubclass(member, VmreplicaError)]


def across(error: VmreplicaError) -> VmreplicaError:
    failure = decode(encode(failure_of(1, error))[:-1])
    assert isinstance(failure, Failure)
    return error_of(failure)


@pytest.mark.parametrize("error_class", OURS, ids=lambda each: each.__name__)
def test_class_text_and_remedy_survive(error_class: type[VmreplicaError]) -> None:
    received = across(error_class("The disk is full.", "Buy another."))
    assert type(received) is error_class
    assert (received.text, received.remedy, received.code) == ("The disk is full.", "Buy another.", error_class.code)
    assert received.exit_code == error_class.exit_code


def test_every_class_has_its_own_number_and_code() -> None:
    assert len({each.exit_code for each in OURS}) == len({each.code for each in OURS}) == len(OURS)


def test_code_of_one_error_survives() -> None:
    # No class anywhere has this code: one that has it would be taken, if another test imported its module.
    received = across(StorageError("x", code="only_in_this_test"))
    assert type(received) is StorageError
    assert received.code == "only_in_this_test"


class NotTrackingError(InvalidStateError):
    """A subclass that takes other arguments."""

    code = "not_tracking_in_this_test"

    def __init__(self, vm: str) -> None:
        super().__init__(f"{vm} is not tracked.", "Start tracking.")


def test_subclass_with_other_arguments_survives() -> None:
    received = across(NotTrackingError("web"))
    assert type(received) is NotTrackingError
    assert received.text == "web is not tracked."


def test_class_that_the_client_does_not_know_becomes_its_nearest() -> None:
    data = {"code": "some_code_of_tomorrow", "text": "T", "remedy": "R"}
    received = error_of(Failure(1, InvalidStateError.exit_code, "T", data))
    assert type(received) is InvalidStateError
    assert received.code == "some_code_of_tomorrow"
    assert type(error_of(Failure(1, 12345, "T", data))) is VmreplicaError


def test_failure_without_data_keeps_its_message() -> None:
    received = error_of(Failure(1, 4, "only this", {"text": 7, "remedy": []}))
    assert (type(received), received.text, received.remedy) == (InvalidStateError, "only this", "")


def test_errors_of_json_rpc_itself() -> None:
    unknown = error_of(rpc_failure(1, METHOD_NOT_FOUND, "no such method"))
    assert (type(unknown), unknown.code) == (UsageError, "unknown_method")
    internal = error_of(rpc_failure(1, INTERNAL_ERROR, "failed"))
    assert (type(internal), internal.code) == (VmreplicaError, "internal")


def test_long_text_is_cut() -> None:
    assert len(across(VmreplicaError("x" * (TEXT_MAX + 1))).text) == TEXT_MAX


def test_code_of_an_enumeration_is_plain_text() -> None:
    class Code(StrEnum):
        SHUTDOWN = "shutdown"

    error = VmreplicaError("x", code=Code.SHUTDOWN)
    assert type(error.code) is str
    assert error.code == Code.SHUTDOWN
