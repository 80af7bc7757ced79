"""From a device's objects to its answer, so that a malformed one costs its device the round.

Flower takes the objects of an answer from the SuperLink and inflates them into a message. Objects
that are missing become an error answer; objects that cannot be inflated would end the whole run.
Here they count as missing.
"""

from collections.abc import Callable
from typing import Any

from flwr.app import Message
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    inflate_object_from_contents,
    pull_objects,
)

# An answer is announced before its objects are there. Flower looks again after a second, which is
# most of a short round, and goes on looking for two hours if a device vanishes in its upload.
_PULL_BACKOFF_S = 0.05
_PULL_BACKOFF_CAP_S = 1.0
_PULL_TIMEOUT_S = 60.0


class Inflated(dict[str, bytes]):
    """An answer's objects, used up by making its message.

    Attributes:
        message: The answer.
    """

    message: Message


def pull_and_inflate(
    object_ids: list[str], pull_object_fn: Callable[[str], bytes]
) -> dict[str, bytes]:
    """Pull an answer's objects, its root last, and inflate them.

    Raises:
        ObjectPullError: they are missing, or are not those of a message.
    """
    contents = pull_objects(
        object_ids,
        pull_object_fn,
        initial_backoff=_PULL_BACKOFF_S,
        backoff_cap=_PULL_BACKOFF_CAP_S,
        max_time=_PULL_TIMEOUT_S,
    )
    inflated = Inflated()
    try:
        message = inflate_object_from_contents(object_ids[-1], contents)
    except Exception as error:  # whatever a hostile device made Flower stumble over
        raise ObjectPullError(object_ids[-1], f"{type(error).__name__}: {error}"[:300]) from error
    if not isinstance(message, Message):
        raise ObjectPullError(object_ids[-1], f"a {type(message).__name__} is not an answer")
    inflated.message = message
    return inflated


def inflated_message(_message_id: str, contents: Any) -> Message:
    """The message that `pull_and_inflate` made of the contents."""
    message: Message = contents.message
    return message
