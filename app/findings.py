"""Results of checks: of `ext-classify doctor`, and of the service's own GET /doctor."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

# With a larger skew, tokens and signed URLs are not valid yet, or have expired.
MAX_SKEW_SECONDS = 30.0

State = Literal["ok", "note", "wrong", "skipped"]


@dataclass(frozen=True)
class Finding:
    """One result of a check. `advice` says how to fix a problem."""

    check: str
    state: State
    said: str
    advice: str = ""


class Findings(list[Finding]):
    def ok(self, check: str, said: str) -> None:
        self.append(Finding(check, "ok", said))

    def note(self, check: str, said: str, advice: str) -> None:
        self.append(Finding(check, "note", said, advice))

    def wrong(self, check: str, said: str, advice: str) -> None:
        self.append(Finding(check, "wrong", said, advice))

    def skipped(self, check: str, said: str) -> None:
        self.append(Finding(check, "skipped", said))

    def expecting(self, check: str, advice: str, *errors: type[Exception]) -> "_Expecting":
        """Return a context manager that turns these errors into `wrong` findings."""
        return _Expecting(self, check, advice, errors)

    @property
    def failed_checks(self) -> list[str]:
        return list(dict.fromkeys(finding.check for finding in self if finding.state == "wrong"))


@dataclass(frozen=True)
class _Expecting:
    findings: Findings
    check: str
    advice: str
    errors: tuple[type[Exception], ...]

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if not isinstance(error, self.errors):
            return False
        self.findings.wrong(self.check, " ".join(str(error).split()) or type(error).__name__, self.advice)
        return True


def check_session(findings: Findings, check: str, row: Sequence[object], advice: str) -> None:
    """Note a session: `row` is (user, role, warehouse, now), and `advice` applies if it has no warehouse."""
    user, role, warehouse, now = row
    said = f"as {user}, role {role or 'none'}, warehouse {warehouse or 'none'}"
    if warehouse is None:
        findings.note(check, said, advice)
    else:
        findings.ok(check, said)
    if isinstance(now, datetime):
        check_clock(findings, now.timestamp(), "Snowflake's")


def check_clock(findings: Findings, their_seconds: float, whose: str) -> None:
    """Compare this machine's clock with `their_seconds`, the other clock's time since 1970."""
    skew_seconds = time.time() - their_seconds
    said = f"{abs(skew_seconds):.0f} s {'ahead of' if skew_seconds > 0 else 'behind'} {whose}"
    if abs(skew_seconds) > MAX_SKEW_SECONDS:
        advice = "Synchronise the clock with NTP: logins and signed URLs fail."
        findings.wrong("clock", f"this machine's clock is {said}", advice)
    else:
        findings.ok("clock", f"this machine's clock is {said}")
