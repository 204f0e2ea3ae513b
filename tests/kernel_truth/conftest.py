"""One agent for all that is held against the kernel; whoever uses it goes into a namespace of their own first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.namespaces import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", name="agent")
def _agent() -> Iterator[Namespace]:
    with Namespace() as namespace:
        yield namespace
