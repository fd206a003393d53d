"""The routes about responses that are kept."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response

from drivetrain_server.errors import HttpError
from drivetrain_server.kept_responses import KeptResponses
from drivetrain_server.keys import Tenant
from drivetrain_server.openapi import query_parameters
from drivetrain_server.service import ignored_fields
from drivetrain_server.wire.kept_responses import InputItemsQuery, RetrieveQuery, page_of_items, query_fields
from drivetrain_server.wire.unservable import RETRIEVE, refuse_unservable
from drivetrain_server.wire.validation import WireModel, parse

Json = dict[str, Any]
Query = TypeVar("Query", bound=WireModel)


def add_kept_responses(app: FastAPI, kept: KeptResponses) -> None:
    """Add them to an application."""

    @app.get("/v1/responses/{response_id}", openapi_extra=query_parameters(RetrieveQuery))
    async def retrieve(response_id: str, request: Request, response: Response) -> Json:  # pyright: ignore[reportUnusedFunction]
        """A response as it was answered."""
        refuse_unservable(dict(request.query_params), RETRIEVE)
        _query(RetrieveQuery, request, response)
        return (await kept.get(_tenant(request), response_id)).body

    @app.get("/v1/responses/{response_id}/input_items", openapi_extra=query_parameters(InputItemsQuery))
    async def input_items(response_id: str, request: Request, response: Response) -> Json:  # pyright: ignore[reportUnusedFunction]
        """The items that the request of a response brought, page by page."""
        query = _query(InputItemsQuery, request, response)
        return page_of_items((await kept.get(_tenant(request), response_id)).inputs, response_id, query)

    @app.delete("/v1/responses/{response_id}")
    async def delete(response_id: str, request: Request) -> Json:  # pyright: ignore[reportUnusedFunction]
        """Forget a response."""
        await kept.delete(_tenant(request), response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    @app.post("/v1/responses/{response_id}/cancel")
    async def cancel(response_id: str, request: Request) -> Json:  # pyright: ignore[reportUnusedFunction]
        """Refused: responses end with their connection."""
        await kept.get(_tenant(request), response_id)
        raise HttpError(
            400,
            "only responses with background=true can be cancelled, and none are served; "
            "close the connection to end one that runs",
            code="not_cancellable",
        )


def _tenant(request: Request) -> Tenant:
    return request.scope["drivetrain.tenant"]


def _query(model: type[Query], request: Request, response: Response) -> Query:
    """The query of a request; what nobody knows of it is listed in a header of the response.

    Raises:
        HttpError: 400, names the parameter at fault.
    """
    query = parse(model, query_fields(request.query_params.multi_items()))
    for name, value in ignored_fields(query.unknown, dict(RETRIEVE)):
        response.headers[name.decode()] = value.decode()
    return query
