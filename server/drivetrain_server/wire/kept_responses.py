"""What the routes about kept responses take in their queries, and the pages of input items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from drivetrain_server.wire.faults import shown
from drivetrain_server.wire.responses import Include
from drivetrain_server.wire.validation import WireModel, refuse

Json = dict[str, Any]


class RetrieveQuery(WireModel):
    """Which response is meant stands in the path."""

    include: Include | None = None
    """Taken, and adds nothing."""


class InputItemsQuery(RetrieveQuery):
    """Which of a response's input items, in which order.

    Attributes:
        after: id of the item that the page goes on behind.
    """

    order: Literal["asc", "desc"] = "desc"
    """`desc` puts the newest first. Default: `desc`."""
    limit: Annotated[int, Field(strict=False, ge=1, le=100)] = 20
    """Items of one page at most. Default: 20."""
    after: str | None = None
    """Go on behind this item."""


def query_fields(pairs: Iterable[tuple[str, str]]) -> dict[str, object]:
    """A query as fields: of a name that comes again the last value counts; `include` gathers all of its own."""
    fields: dict[str, object] = {}
    include: list[str] = []
    for name, value in pairs:
        if name in ("include", "include[]"):
            include.append(value)
            fields["include"] = include
        else:
            fields[name] = value
    return fields


def page_of_items(inputs: Sequence[Json], response_id: str, query: InputItemsQuery) -> Json:
    """The page of a response's input items that a query asks for.

    Raises:
        HttpError: 400, `after` names no item of this response.
    """
    listed = _listed(inputs, response_id)
    if query.order == "desc":
        listed.reverse()
    start = 0
    if query.after is not None:
        places = {item["id"]: at for at, item in enumerate(listed)}
        if query.after not in places:
            raise refuse("after", f"expected the id of an input item of this response; got {shown(query.after)}")
        start = places[query.after] + 1
    data = listed[start : start + query.limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": start + len(data) < len(listed),
    }


def _listed(inputs: Sequence[Json], response_id: str) -> list[Json]:
    """The items as they were sent, each with an id that no other has, so that pages end; messages with their parts."""
    listed: list[Json] = []
    taken: set[str] = set()
    for at, item in enumerate(inputs):
        own = item.get("id")
        id = own if isinstance(own, str) and own not in taken else f"item_{response_id}_{at}"
        taken.add(id)
        listed.append({**(_message(item) if item.get("type", "message") == "message" else item), "id": id})
    return listed


def _message(item: Json) -> Json:
    content = item["content"]
    if isinstance(content, str):
        part: Json = {"type": "input_text", "text": content}
        if item["role"] == "assistant":
            part = {"type": "output_text", "text": content, "annotations": []}
        content = [part]
    return {**item, "type": "message", "status": "completed", "content": content}
