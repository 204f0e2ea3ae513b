"""When a receiver is sent what, over hours of a clock that jumps from one wait to the next."""

from __future__ import annotations

import asyncio
import json
import logging
import selectors
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import pytest

from ephmon.delivery.alert_set import AlertSet
from ephmon.delivery.alertmanager import Alertmanager
from ephmon.delivery.notification import Notification
from ephmon.delivery.post import MAX_RETRY_AFTER_SECONDS, Poster, PostError, parse_target
from ephmon.delivery.receiver import Receiver
from ephmon.delivery.settings import DeliveryTimes, MessageContext
from ephmon.delivery.webhook import Webhook
from ephmon.model.status import DeliveryCounts, DeliveryFailure

if TYPE_CHECKING:
    from collections.abc import Callable

START = 1_700_000_000.0
TIMES = DeliveryTimes()
HOUR = 3600.0


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop in which waiting takes no time."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.now


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._loop.now += timeout or 0.0
        return super().select(0)


class Addresses:
    """Counts how often names are looked up again."""

    def __init__(self) -> None:
        self.refreshed = 0

    def refresh(self) -> None:
        self.refreshed += 1


class ScriptedPoster:
    """Records what is posted when, and answers by a function of the number of posts so far."""

    def __init__(self, answer: Callable[[int], PostError | Exception | None]) -> None:
        self.target = parse_target("http://ann:secret@am.example:9093/secret")
        self.addresses = Addresses()
        self.posts: list[tuple[float, Any]] = []
        self._answer = answer

    async def post(self, body: bytes, *, deadline_seconds: float, now: float) -> None:
        assert deadline_seconds == TIMES.deadline_seconds
        self.posts.append((asyncio.get_running_loop().time(), json.loads(body)))
        assert now == START + self.posts[-1][0]
        error = self._answer(len(self.posts) - 1)
        if error is not None:
            raise error


def taking(_number: int) -> None:
    """Take everything."""


def failing(error: PostError, times: int = 1_000_000) -> Callable[[int], PostError | None]:
    return lambda number: error if number < times else None


SERVER_ERROR = PostError(DeliveryFailure.SERVER_ERROR, "answered with status 500")
CLIENT_ERROR = PostError(DeliveryFailure.CLIENT_ERROR, "answered with status 400")
NOBODY = PostError(DeliveryFailure.CONNECTION, "cannot be reached: Connection refused")


class Course:
    """What a receiver was sent in the course of updates: seconds from the start, and the names of what is active."""

    def __init__(
        self,
        kind: type[Alertmanager | Webhook],
        answer: Callable[[int], PostError | Exception | None],
        *updates: tuple[float, str],
        seconds: float,
        chance: float = 1.0,
    ) -> None:
        """`chance` 1 makes every pause as long as it can be; the receiver is stopped after so many seconds."""
        self.tally = DeliveryCounts()
        self.poster = ScriptedPoster(answer)
        self._loop = JumpingLoop()
        self.receiver = Receiver(
            kind(TIMES),
            cast("Poster", self.poster),
            times=TIMES,
            tally=self.tally,
            wall_clock=lambda: START + self._loop.now,
            chance=lambda: chance,
        )
        self.receiver.context = MessageContext(host="web1")
        self._alerts = AlertSet()
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._run(updates, seconds))

    async def _run(self, updates: tuple[tuple[float, str], ...], seconds: float) -> None:
        for moment, names in updates:
            self._loop.call_at(moment, self._update, names)
        task = self._loop.create_task(self.receiver.run())
        self._loop.call_at(seconds, self.receiver.stop)
        await task

    def _update(self, names: str) -> None:
        now = START + self._loop.now
        active = [self._alerts.active.get(_key(name)) or alert(name, now) for name in names]
        self._alerts = self._alerts.updated(active, {}, now)
        self.receiver.update(self._alerts)

    @property
    def moments(self) -> list[float]:
        return [moment for moment, _ in self.poster.posts]

    @property
    def pauses(self) -> list[float]:
        return [after - before for before, after in zip(self.moments, self.moments[1:], strict=False)]

    @property
    def told(self) -> list[tuple[float, str]]:
        """Each post: when, and the names in it, in lower case where the alert is over."""
        return [(moment, self._names(document, moment)) for moment, document in self.poster.posts]

    def _names(self, document: Any, moment: float) -> str:
        alerts = document if isinstance(document, list) else document["alerts"]
        names = []
        for one in alerts:
            name = one["labels"]["alertname"]
            ends_at = datetime.fromisoformat(one["endsAt"]).timestamp() - START
            names.append(name.lower() if 0 <= ends_at <= moment else name)
        return "".join(sorted(names))


def _key(name: str) -> tuple[tuple[str, str], ...]:
    return (("alertname", name),)


def alert(name: str, starts_at: float) -> Notification:
    return Notification(labels={"alertname": name}, starts_at=starts_at)


def test_an_alertmanager_is_sent_everything_each_minute_and_what_is_over_for_five() -> None:
    course = Course(Alertmanager, taking, (10.0, "AB"), (100.0, "B"), (130.0, ""), seconds=HOUR)

    assert course.told == [
        *[(10.0, "AB"), (70.0, "AB")],
        *[(100.0, "Ba"), (130.0, "ab")],
        *[(190.0, "ab"), (250.0, "ab"), (310.0, "ab"), (370.0, "ab"), (430.0, "b")],
    ]


def test_an_active_alert_is_refreshed_for_as_long_as_it_lasts() -> None:
    course = Course(Alertmanager, taking, (0.0, "A"), seconds=HOUR)

    assert course.moments == [60.0 * number for number in range(60)]


def test_without_alerts_nobody_is_sent_anything() -> None:
    assert Course(Alertmanager, taking, (0.0, ""), seconds=HOUR).told == []
    assert Course(Webhook, taking, (0.0, ""), seconds=HOUR).told == []


def test_a_webhook_is_reported_of_changes_and_each_four_hours_of_what_lasts() -> None:
    course = Course(Webhook, taking, (10.0, "A"), (100.0, "AB"), (200.0, "B"), seconds=9 * HOUR)

    assert course.told == [
        (10.0, "A"),
        (100.0, "AB"),
        (200.0, "Ba"),
        (200.0 + 4 * HOUR, "B"),
        (200.0 + 8 * HOUR, "B"),
    ]


@pytest.mark.parametrize("kind", [Alertmanager, Webhook])
def test_changes_that_come_fast_are_reported_together_and_never_too_often(kind: type[Alertmanager | Webhook]) -> None:
    updates = [(0.1 * step, "A" if step % 2 else "AB") for step in range(1200)]
    course = Course(kind, taking, *updates, seconds=119.0)

    assert course.pauses[:-1] == [pytest.approx(TIMES.pause_seconds)] * 23  # the last is at its end


def test_the_pause_after_a_failure_doubles_up_to_a_limit() -> None:
    webhook = Course(Webhook, failing(SERVER_ERROR), (0.0, "A"), seconds=HOUR)
    alertmanager = Course(Alertmanager, failing(SERVER_ERROR), (0.0, "A"), seconds=HOUR)

    assert webhook.pauses[:9] == [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0]
    assert alertmanager.pauses[:7] == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert max(webhook.pauses) == 300.0


def test_chance_takes_up_to_half_of_a_pause() -> None:
    course = Course(Webhook, failing(SERVER_ERROR), (0.0, "A"), seconds=HOUR, chance=0.0)

    assert course.pauses[:4] == [1.0, 2.0, 4.0, 8.0]


def test_after_a_success_the_pauses_begin_anew() -> None:
    course = Course(
        Webhook, lambda number: None if number == 3 else SERVER_ERROR, (0.0, "A"), (100.0, "AB"), seconds=110.0
    )

    assert course.moments == [0.0, 2.0, 6.0, 14.0, 100.0, 102.0, 106.0]


def test_what_changes_during_a_pause_waits_for_its_end_and_is_reported_then() -> None:
    course = Course(Webhook, failing(SERVER_ERROR, times=4), (0.0, "A"), (20.0, "B"), (25.0, "BC"), seconds=HOUR)

    assert course.told == [(0.0, "A"), (2.0, "A"), (6.0, "A"), (14.0, "A"), (30.0, "BCa")]


def test_the_time_that_a_receiver_asks_for_is_kept() -> None:
    busy = PostError(DeliveryFailure.RATE_LIMITED, "answered with status 429", retry_after_seconds=90.0)
    course = Course(Webhook, failing(busy, times=1), (0.0, "A"), (50.0, "AB"), seconds=HOUR)

    assert course.told == [(0.0, "A"), (90.0, "AB")]
    assert busy.retry_after_seconds < MAX_RETRY_AFTER_SECONDS < TIMES.repeat_seconds


def test_what_a_webhook_refuses_is_not_sent_again_until_something_changes() -> None:
    course = Course(Webhook, failing(CLIENT_ERROR), (0.0, "A"), (1000.0, "AB"), seconds=3 * HOUR)

    assert course.told == [(0.0, "A"), (1000.0, "AB")]
    assert course.receiver.pending == 0
    assert course.tally.failures[DeliveryFailure.CLIENT_ERROR] == 2


def test_what_an_alertmanager_refuses_is_sent_again_at_the_regular_time_only() -> None:
    """It stores the alerts of a message that it can, and those must be refreshed (postAlertsHandler in api/v2)."""
    assert Course(Alertmanager, failing(CLIENT_ERROR), (0.0, "A"), seconds=150.0).moments == [0.0, 60.0, 120.0]


@pytest.mark.parametrize("reason", [reason for reason in DeliveryFailure if reason != DeliveryFailure.CLIENT_ERROR])
def test_after_any_other_failure_it_is_tried_again(reason: DeliveryFailure) -> None:
    course = Course(Webhook, failing(PostError(reason, "x"), times=1), (0.0, "A"), seconds=HOUR)

    assert course.moments == [0.0, 2.0]
    assert course.tally.failures[reason] == 1
    assert course.tally.attempts == 2
    assert course.tally.succeeded_at == START + 2.0


@pytest.mark.parametrize(
    ("reason", "refreshed"),
    [
        (DeliveryFailure.CONNECTION, 3),
        (DeliveryFailure.TIMEOUT, 3),
        (DeliveryFailure.TLS, 3),
        (DeliveryFailure.PROTOCOL, 3),
        (DeliveryFailure.REDIRECT, 3),
        (DeliveryFailure.SERVER_ERROR, 3),
        (DeliveryFailure.RATE_LIMITED, 0),
        (DeliveryFailure.SOURCE_PORT, 0),
        (DeliveryFailure.DEFECT, 0),
    ],
)
def test_names_are_looked_up_again_when_nobody_or_somebody_else_is_found_behind_them(
    reason: DeliveryFailure, refreshed: int
) -> None:
    course = Course(Webhook, failing(PostError(reason, "x"), times=3), (0.0, "A"), seconds=HOUR)

    assert course.poster.addresses.refreshed == refreshed


def test_an_alert_that_came_and_went_while_a_webhook_was_down_is_still_reported() -> None:
    course = Course(Webhook, failing(NOBODY, times=9), (0.0, "A"), (3.0, ""), seconds=HOUR)

    assert course.told[-1][1] == "a"
    assert course.receiver.pending == 0


def test_an_end_that_is_forgotten_before_the_webhook_came_back_is_counted() -> None:
    def down_after_the_first(number: int) -> PostError | None:
        return NOBODY if number else None

    day = 24 * HOUR
    course = Course(
        Webhook, down_after_the_first, (0.0, "A"), (100.0, ""), (100.0 + day, ""), (101.0 + day, ""), seconds=25 * HOUR
    )

    assert course.tally.dropped == 1


def test_an_alert_that_fires_again_is_reported_again() -> None:
    course = Course(Webhook, taking, (0.0, "A"), (100.0, ""), (200.0, "A"), (203.0, ""), (204.0, "A"), seconds=HOUR)

    assert course.told == [(0.0, "A"), (100.0, "a"), (200.0, "A"), (205.0, "A")]


def test_a_defect_in_one_attempt_does_not_end_the_deliveries(caplog: pytest.LogCaptureFixture) -> None:
    course = Course(
        Webhook, lambda number: ZeroDivisionError("secret") if number == 0 else None, (0.0, "A"), seconds=HOUR
    )

    assert course.moments == [0.0, 2.0]
    assert course.tally.failures[DeliveryFailure.DEFECT] == 1
    assert "please report it: ZeroDivisionError in ScriptedPoster.post line " in caplog.text
    assert "secret" not in caplog.text


def test_told_to_stop_it_sends_what_it_owes_at_once_but_does_not_wait_for_a_retry() -> None:
    assert Course(Webhook, taking, (0.0, "A"), (1.0, "AB"), seconds=2.0).told == [(0.0, "A"), (2.0, "AB")]
    assert Course(Webhook, failing(NOBODY), (0.0, "A"), seconds=1.0).moments == [0.0]


def test_the_log_tells_of_a_receiver_once_for_each_reason_and_shows_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ephmon")
    Course(Webhook, lambda number: SERVER_ERROR if number > 5 else NOBODY, (0.0, "A"), seconds=HOUR)
    Course(Webhook, failing(NOBODY, times=3), (0.0, "A"), seconds=HOUR)

    assert [record.getMessage() for record in caplog.records] == [
        "The webhook at am.example:9093 cannot be reached: Connection refused.",
        "The webhook at am.example:9093 answered with status 500.",
        "The webhook at am.example:9093 cannot be reached: Connection refused.",
        "The webhook at am.example:9093 accepts alerts again.",
    ]


def test_a_receiver_that_comes_and_goes_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ephmon")
    updates = [(float(step), "A" if step % 2 else "AB") for step in range(3600)]
    Course(Webhook, lambda number: NOBODY if number % 2 else None, *updates, seconds=HOUR)

    assert len(caplog.records) <= 2 * 60
