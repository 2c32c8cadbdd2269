"""House styles: five invented agencies that order, date and phrase the same event differently."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.newswire.values import BROAD, COMPACT, MONTHS, WEEKDAYS, WIRE, day_of

# Steps of an article. L lede, B facts still untold, D detail, Q quote, S state of the subject, P its past,
# T town or another party, C colour. A dash ends a paragraph.
Steps = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class House:
    """One agency. `opening` holds the facts; `rest` is taken paragraph by paragraph until the length is met."""

    code: str
    name: str
    register: int
    opening: tuple[Steps, ...]
    rest: Steps
    bullets: bool = False
    headings: tuple[str, ...] = ()
    share: int = 1

    def dateline(self, town: str, moment: int) -> str:
        """What stands before the first sentence."""
        day = day_of(moment)
        clock = f"{moment % 86_400 // 3600:02d}:{moment // 60 % 60:02d}"
        if self.code == "kst":
            return f"{town.upper()}, {MONTHS[day.month - 1][:3]} {day.day} (Kestwick) - "
        if self.code == "hvp":
            return f"{town}, {WEEKDAYS[day.weekday()]} {day.day} {MONTHS[day.month - 1]} — "
        if self.code == "b24":
            return f"{clock} UTC | {town}\n\n"
        if self.code == "qll":
            return f"{town} ({day.day} {MONTHS[day.month - 1]} {day.year})\n\n"
        return ""


HOUSES: tuple[House, ...] = (
    House("kst", "Kestwick Wire", WIRE, (("LB", "D"), ("L", "BD"), ("LB",)),
          ("Q", "DS", "P", "QD", "T", "D", "SC", "Q", "PT", "D", "C", "DT", "SP"), share=6),
    House("hvp", "Halvorn Press", BROAD, (("LQ", "BD"), ("L", "BQ"), ("LB", "DQ")),
          ("SD", "QP", "DC", "TD", "QS", "DT", "CQ", "PDS"), share=5),
    House("tsd", "Tessel Dispatch", BROAD, (("QL", "B"), ("CQ", "LB"), ("D", "LB"), ("QD", "LB")),
          ("DQ", "SPD", "QC", "TS", "DDC", "QT", "PC"), share=4),
    House("b24", "Brimstow 24", COMPACT, (("L", "B", "D"), ("L", "B"), ("LB", "S")),
          ("D", "Q", "S", "D", "P", "T", "Q", "C", "D"), bullets=True, share=4),
    House("qll", "Quaylight Ledger", WIRE, (("L", "BS"), ("LS", "BP"), ("L", "BD")),
          ("PD", "QD", "ST", "DDQ", "PS", "TC", "QD", "CT"),
          headings=("What happened", "What it means", "Background", "Further"), share=3),
)  # fmt: skip
BY_CODE = {house.code: house for house in HOUSES}
