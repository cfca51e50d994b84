"""The job `send-mail`: one attempt at a mail, and what follows from it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from piecework.errors import DeliveryUnknownError, MailRefused, MailUnknown, PieceworkError, clean_text
from piecework.services.delivery import Decision, after_attempt
from piecework.services.job import Again, Done, GaveUp
from piecework.telemetry import signals

if TYPE_CHECKING:
    from piecework.services.delivery import Result
    from piecework.services.job import Attempt, Verdict
    from piecework.services.transport import Transport


JOB = "send-mail"
"""The name of the runs that send mails."""


class Mailing:
    """Carries out attempts of `send-mail`.

    Args:
        transport: Where mails go.
        retry_seconds: The waits after refusals.
    """

    def __init__(self, transport: Transport, retry_seconds: tuple[float, ...]) -> None:
        self._transport = transport
        self._retry_seconds = retry_seconds

    def check(self, args: dict[str, Any]) -> None:
        """Refuses arguments that no mail can be made of, when the job is queued.

        Raises:
            ValidationError: One is unknown, missing, or not acceptable.
        """
        self._mail(args, "checked")

    @staticmethod
    def _mail(args: dict[str, Any], run_id: str) -> dict[str, Any]:
        from piecework.services.mail import checked  # with the mail libraries, which only senders need

        return checked(args, run_id)

    async def __call__(self, attempt: Attempt) -> Verdict:
        """Hands the mail over once, unless too many attempts have vanished already."""
        refusals: int = attempt.state.get("refusals", 0)
        unknowns: int = attempt.state.get("unknowns", 0) + attempt.cut_off
        if unknowns > 1:
            return GaveUp(_unknown(attempt.run_id))
        mail = self._mail(attempt.args, attempt.run_id)
        message_id = mail["message_id"]
        error: PieceworkError | None = None
        refused: dict[str, Any] = {}
        result: Result = "sent"
        try:
            refused = await self._transport.deliver(mail, message_id=message_id)
        except MailRefused as refusal:
            error, result = refusal, "permanent" if refusal.permanent else "refused"
        except MailUnknown as lost:
            error, result = lost, "unknown"
        except asyncio.CancelledError:
            # Cut off in the middle: whether the server has it is not known, whoever cut it off.
            error, result = DeliveryUnknownError(f"mail {attempt.run_id} was cut off while it was sent"), "unknown"
        refusals += result == "refused"
        unknowns += result == "unknown"
        decision = after_attempt(result, refusals=refusals, unknowns=unknowns, retry_seconds=self._retry_seconds)
        state = {"refusals": refusals, "unknowns": unknowns}
        return self._verdict(attempt, message_id, decision, error, refused, state)

    def _verdict(
        self,
        attempt: Attempt,
        message_id: str,
        decision: Decision,
        error: PieceworkError | None,
        refused: dict[str, Any],
        state: dict[str, Any],
    ) -> Verdict:
        if decision.verdict == "done":
            from piecework.services.transport import Outbox  # with the mail libraries, which only senders need

            if isinstance(self._transport, Outbox):
                text = "no mail server is set: give App(mail=…) or PIECEWORK_MAIL"
                signals.emit(signals.MAIL_KEPT, level="warning", run_id=attempt.run_id, what=text)
            else:
                signals.emit(signals.MAIL_SENT, run_id=attempt.run_id, message_id=message_id)
            told = {clean_text(name): clean_text(str(answer), 500) for name, answer in refused.items()}
            return Done({"message_id": message_id, "refused": told})
        shown = "" if error is None else error.message
        signals.emit(
            signals.MAIL_REFUSED,
            level="warning",
            run_id=attempt.run_id,
            error=shown,
            retry_in_seconds=decision.seconds,
        )
        if decision.verdict == "retry":
            return Again(decision.seconds or 0, state, error)
        if decision.code == DeliveryUnknownError.code:
            return GaveUp(_unknown(attempt.run_id))
        return GaveUp(error if error is not None else PieceworkError(f"mail {attempt.run_id} could not be sent"))


def _unknown(run_id: str) -> DeliveryUnknownError:
    return DeliveryUnknownError(
        f"mail {run_id} was handed over twice and neither time is it known whether the server took it: "
        "ask the recipient before you send it again",
        run_id=run_id,
    )
