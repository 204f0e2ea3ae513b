"""One file of these at a time: they make the instance with the name that a service has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.machine import IS_ROOT
from tests.tracing import alone_with_the_prepared_instance

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", autouse=True)
def _alone() -> Iterator[None]:
    if not IS_ROOT:  # only root sees tracefs
        yield
        return
    with alone_with_the_prepared_instance():
        yield
