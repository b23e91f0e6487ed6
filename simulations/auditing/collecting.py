"""Gathers what is wrong by check, so that a check that found nothing says so in one line."""

from dataclasses import dataclass, field

from medfed.simulations.auditing.findings import Finding, Status


@dataclass
class Check:
    """One check over many sites and rounds.

    Attributes:
        name: What findings call it.
        passes: What it means that nothing was wrong, a sentence.
        looked_at: How many things were checked; a check that looked at none passes nothing.
        problems: What is wrong, a sentence each.
        notes: What a reader should know and is not wrong.
    """

    name: str
    passes: str
    looked_at: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def findings(self, part: str) -> list[Finding]:
        """Return a finding for each problem and note, or the one that says that all is well."""
        found = [Finding(part, self.name, Status.FAIL, problem) for problem in self.problems]
        if not found and self.looked_at:
            found = [
                Finding(part, self.name, Status.PASS, self.passes, {"checked": self.looked_at})
            ]
        return found + [Finding(part, self.name, Status.NOTE, note) for note in self.notes]
