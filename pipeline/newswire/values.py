"""Values of facts: how each house writes them, and which forms of them count as a right answer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from typing import Any

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
          "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")  # fmt: skip
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ORDINALS = ("zeroth", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth",
             "tenth", "11th", "12th", "13th", "14th", "15th", "16th")  # fmt: skip
DAY_S = 86_400
_EPOCH_DAY = date(1970, 1, 1).toordinal()

# Registers: how a house writes values.
WIRE, BROAD, COMPACT = 0, 1, 2


class Value:
    """`shown[register]` is what is printed, `short` the short name, `accepted` the right answers.

    `raw` and `make` rebuild a value of the same kind with another content.
    """

    __slots__ = ("accepted", "make", "raw", "short", "shown")

    def __init__(
        self,
        shown: tuple[str, str, str],
        short: str,
        accepted: tuple[str, ...],
        raw: Any = None,
        make: Callable[[Any], Value] | None = None,
    ) -> None:
        self.shown, self.short, self.accepted, self.raw, self.make = shown, short, accepted, raw, make

    def __repr__(self) -> str:
        return f"Value({self.accepted[0]!r})"


def plain(text: str, *others: str, short: str | None = None) -> Value:
    """A value that every house writes alike."""
    return Value((text, text, text), short or text, (text, *others))


def person(first: str, last: str) -> Value:
    """A person; the last name alone is accepted, for no two living people share one."""
    return plain(f"{first} {last}", last, short=last)


def number_words(count: int) -> str:
    """An integer from 0 to 99 in words."""
    if count < 20:
        return _WORDS[count]
    return _TENS[count // 10] + ("-" + _WORDS[count % 10] if count % 10 else "")


def ordinal(place: int) -> str:
    """first, second, … 16th."""
    return _ORDINALS[place]


def count(number: int) -> Value:
    """A number of things: digits with commas, small ones in words in the broad register."""
    digits = f"{number:,}"
    accepted = tuple(dict.fromkeys((digits, str(number), *((number_words(number),) if number < 100 else ()))))
    words = number_words(number) if number < 10 else digits
    return Value((digits, words, digits), digits, accepted, number, count)


def percent(hundredths: int) -> Value:
    """A percentage given in hundredths of a point."""
    sign = "-" if hundredths < 0 else ""
    text = f"{sign}{abs(hundredths) // 100}.{abs(hundredths) % 100:02d}"
    shown = (f"{text} percent", f"{text} per cent", f"{text}%")
    accepted = (shown[2], shown[0], shown[1], text, *((text[:-1],) if text.endswith("0") else ()))
    return Value(shown, text, accepted, hundredths, percent)


def money(tenths: int, unit: str) -> Value:
    """An amount in tenths of a million of `unit`: 14 is 1.4 million, 14_000 is 1.4 billion."""
    tenths = tenths // 1_000 * 1_000 if tenths >= 10_000 else tenths
    scale, size, mark = ("billion", 10_000, "bn") if tenths >= 10_000 else ("million", 10, "m")
    whole, rest = divmod(tenths * 10 // size, 10)
    text = f"{whole}.{rest}" if rest else str(whole)
    shown = (f"{text} {scale} {unit}", f"{text} {scale} {unit}", f"{text}{mark} {unit}")
    return Value(shown, text, (shown[0], shown[2], f"{text} {scale}", f"{text}{mark}"), tenths,
                 lambda raw: money(raw, unit))  # fmt: skip


def price(cents: int, unit: str) -> Value:
    """A price in hundredths of `unit`."""
    text = f"{cents // 100}.{cents % 100:02d}"
    shown = f"{text} {unit}"
    return Value((shown, shown, shown), text, (shown, text), cents, lambda raw: price(raw, unit))


def degrees(celsius: int) -> Value:
    """A temperature."""
    text = str(abs(celsius))
    minus = "minus " if celsius < 0 else ""
    shown = (f"{minus}{text} degrees Celsius", f"{minus}{text} degrees", f"{celsius}C")
    return Value(
        shown, shown[2], (shown[2], shown[0], shown[1], str(celsius), f"{celsius}°C"), celsius, degrees
    )


def score(pair: tuple[int, int]) -> Value:
    """A result, the home side's goals first."""
    home, away = pair
    text = f"{home}-{away}"
    return Value((text, text, text), text, (text, f"{home}–{away}", f"{home} to {away}", f"{home}:{away}"),
                 pair, score)  # fmt: skip


def tally(pair: tuple[int, int]) -> Value:
    """Votes for and against."""
    ayes, noes = pair
    text = f"{ayes} to {noes}"
    return Value((text, text, f"{ayes}-{noes}"), text, (text, f"{ayes}-{noes}", f"{ayes} votes to {noes}"),
                 pair, tally)  # fmt: skip


def day_of(moment: int) -> date:
    """The UTC date of seconds since the epoch."""
    return date.fromordinal(_EPOCH_DAY + moment // DAY_S)


def start_of(day: date) -> int:
    """Seconds since the epoch at the start of a UTC date."""
    return (day.toordinal() - _EPOCH_DAY) * DAY_S


def iso(moment: int) -> str:
    """ISO 8601 in UTC with a trailing Z."""
    day = day_of(moment)
    rest = moment % DAY_S
    return f"{day.year:04d}-{day.month:02d}-{day.day:02d}T{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}Z"


def from_iso(text: str) -> int:
    """Seconds since the epoch of an ISO 8601 time in UTC."""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (moment - datetime(1970, 1, 1, tzinfo=timezone(timedelta(0)))) // timedelta(seconds=1)


def long_date(day: date) -> str:
    """4 March 2025: how questions name a day."""
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


def day_value(day: date) -> Value:
    """A day as articles name it: March 4, 4 March, 4 March."""
    month = MONTHS[day.month - 1]
    broad = f"{day.day} {month}"
    return Value(
        (f"{month} {day.day}", broad, broad), broad, (long_date(day), broad, f"{month} {day.day}"), day
    )
