"""Results of checks."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "wrong", "skipped"]


@dataclass(frozen=True)
class Finding:
    """One result of a check. `advice` says how to fix a problem."""

    check: str
    state: State
    said: str
    advice: str = ""


class Findings(list[Finding]):
    """Findings in the order of the checks."""

    def ok(self, check: str, said: str) -> None:
        self.append(Finding(check, "ok", said))

    def note(self, check: str, said: str, advice: str = "") -> None:
        self.append(Finding(check, "note", said, advice))

    def wrong(self, check: str, said: str, advice: str) -> None:
        self.append(Finding(check, "wrong", said, advice))

    def skipped(self, check: str, said: str) -> None:
        self.append(Finding(check, "skipped", said))

    def expecting(self, check: str, advice: str, *errors: type[Exception]) -> "_Expecting":
        """Return a context manager that turns these errors into `wrong` findings."""
        return _Expecting(self, check, advice, errors)

    @property
    def passed(self) -> bool:
        return all(finding.state != "wrong" for finding in self)


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
