"""The methods that a server offers, each with a typed, strictly validated struct of its parameters."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from shared.errors import UsageError

if TYPE_CHECKING:
    from shared.admin.server import Client

Method = Callable[[dict[str, Any], "Client"], Awaitable[Any]]
"""Takes the request's params; returns what msgspec can write as JSON; raises VmreplicaError."""


class Params(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Base of the structs that describe a method's parameters."""


class NoParams(Params, frozen=True):
    """A method without parameters."""


P = TypeVar("P", bound=Params)


class InvalidParamsError(UsageError):
    """A request's parameters do not fit the method."""

    code = "invalid_params"


class Methods(Mapping[str, Method]):
    """Names to methods. Handlers get their parameters validated; a mismatch never reaches them."""

    def __init__(self, known: Mapping[str, Method] | None = None) -> None:
        """``known`` are offered as well."""
        self._methods: dict[str, Method] = dict(known or {})

    def add(self, name: str, params: type[P], handler: Callable[[P, Client], Awaitable[Any]]) -> None:
        """Offer ``handler`` as ``name``; a name that is taken is a mistake in the program."""
        assert name not in self._methods, f"method {name} is offered twice"

        async def method(raw: dict[str, Any], client: Client) -> Any:
            try:
                converted = msgspec.convert(raw, params, strict=True)
            except msgspec.ValidationError as error:
                raise InvalidParamsError(
                    f"The parameters of {name} are not valid: {error}.",
                    "Check that the command and the agent are of the same version.",
                ) from None
            return await handler(converted, client)

        self._methods[name] = method

    def method(
        self, name: str, params: type[P]
    ) -> Callable[[Callable[[P, Client], Awaitable[Any]]], Callable[[P, Client], Awaitable[Any]]]:
        """Decorator form of :meth:`add`."""

        def offer(handler: Callable[[P, Client], Awaitable[Any]]) -> Callable[[P, Client], Awaitable[Any]]:
            self.add(name, params, handler)
            return handler

        return offer

    def __getitem__(self, name: str) -> Method:
        return self._methods[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._methods)

    def __len__(self) -> int:
        return len(self._methods)
