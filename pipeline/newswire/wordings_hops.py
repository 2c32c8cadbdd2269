"""Wordings of questions over several facts, of counts, and of what the news does not tell."""
# ruff: noqa: E501 - tables of words, a row a line

from __future__ import annotations

from pipeline.newswire.wordings import Wordings

ROOTS: dict[str, Wordings] = {
    "ceo": (
        "the company led by {v}", "the company that {v} runs", "the company whose chief executive is {v}",
        "the firm that has {v} as its chief executive", "the business headed by {v}",
    ),
    "product": (
        "the company that makes the {v}", "the maker of the {v}", "the company behind the {v}",
        "the firm that sells the {v}", "the producer of the {v}",
    ),
    "coach": (
        "the team coached by {v}", "the team that {v} trains", "the club whose coach is {v}",
        "the side in the charge of {v}", "the team under {v}",
    ),
    "director": (
        "the institute directed by {v}", "the institute that {v} heads", "the institute whose director is {v}",
        "the research house under {v}", "the institute led by {v}",
    ),
}  # fmt: skip
"""An entity named by the value of one of its states."""

LINKS: dict[str, Wordings] = {
    "hq": (
        "the town where {np} has its headquarters", "the town in which {np} is based",
        "the town that houses the headquarters of {np}", "the home town of {np}", "the seat of {np}",
    ),
    "owner": (
        "the company that owns {np}", "the owner of {np}", "the parent company of {np}",
        "the firm to which {np} belongs", "the business that holds {np}",
    ),
    "team": (
        "the team that the player {np} plays for", "the club of the player {np}", "the team of the footballer {np}",
        "the side that fields {np}", "the club that has {np} under contract",
    ),
    "sponsor": (
        "the company that sponsors the shirts of {np}", "the shirt sponsor of {np}",
        "the company whose name is on the shirts of {np}", "the sponsor of {np}", "the firm that backs {np} as shirt sponsor",
    ),
    "employer": (
        "the institute where the scientist {np} works", "the institute that employs {np}",
        "the employer of the researcher {np}", "the institute of the scientist {np}",
        "the institute that has {np} on its staff",
    ),
    "site": (
        "the town where {np} is housed", "the town of {np}", "the town that is home to {np}",
        "the town in which {np} works", "the seat of {np}",
    ),
}  # fmt: skip
"""An entity named as a state of another."""

LAST: dict[str, Wordings] = {
    "ceo": (
        "Who is the chief executive of {np}?", "Who leads {np}?", "Name the chief executive of {np}.",
        "Who holds the top job at {np}?", "Which person runs {np}?",
    ),
    "hq": (
        "In which town does {np} have its headquarters?", "Where is {np} based?", "Name the town where {np} is based.",
        "Where is the head office of {np}?", "Which town is the seat of {np}?",
    ),
    "mayor": (
        "Who is the mayor of {np}?", "Who is mayor in {np}?", "Name the mayor of {np}.",
        "Who governs {np} as mayor?", "Which person is mayor of {np}?",
    ),
    "population": (
        "What is the population of {np}?", "How many people live in {np}?", "How many inhabitants has {np}?",
        "What population does {np} have?", "How large is the population of {np}?",
    ),
    "coach": (
        "Who coaches {np}?", "Who is the coach of {np}?", "Name the coach of {np}.", "Who trains {np}?",
        "Which person coaches {np}?",
    ),
    "sponsor": (
        "Which company is the shirt sponsor of {np}?", "Who sponsors the shirts of {np}?",
        "Name the shirt sponsor of {np}.", "Which name is on the shirts of {np}?", "Which firm sponsors {np}?",
    ),
    "director": (
        "Who is the director of {np}?", "Who heads {np}?", "Name the director of {np}.", "Who is in charge of {np}?",
        "Which person directs {np}?",
    ),
    "site": (
        "In which town is {np}?", "Where is {np} housed?", "Name the town where {np} works.",
        "Where does {np} have its main building?", "Which town is home to {np}?",
    ),
}  # fmt: skip

INVERSE_PATHS: dict[int, tuple[tuple[str, ...], ...]] = {
    2: (("ceo", "hq"), ("product", "ceo"), ("product", "hq"), ("coach", "sponsor"), ("director", "site")),
    3: (("ceo", "hq", "mayor"), ("product", "hq", "mayor"), ("coach", "sponsor", "ceo"),
        ("director", "site", "mayor"), ("product", "owner", "ceo"), ("ceo", "hq", "population")),
}  # fmt: skip
"""The first state names the entity, the second is a state of that entity, the third of its value."""
FORWARD_PATHS: dict[int, tuple[tuple[str, ...], ...]] = {
    2: (("hq", "mayor"), ("hq", "population"), ("owner", "ceo"), ("owner", "hq"), ("team", "coach"),
        ("team", "sponsor"), ("sponsor", "ceo"), ("sponsor", "hq"), ("employer", "director"), ("employer", "site"),
        ("site", "mayor")),
    3: (("owner", "hq", "mayor"), ("team", "sponsor", "ceo"), ("employer", "site", "mayor"),
        ("sponsor", "hq", "mayor"), ("team", "sponsor", "hq"), ("owner", "hq", "population")),
}  # fmt: skip
"""Each state's value is the entity of the next."""

COUNTS: dict[str, Wordings] = {
    "passed": (
        "How many acts did the {s} pass from {a} to {b}?", "From {a} to {b}, how many laws did the {s} adopt?",
        "How often did the {s} approve an act between {a} and {b}, both days included?",
        "Count the acts that the {s} passed from {a} to {b}.", "What number of acts cleared the {s} from {a} to {b}?",
    ),
    "claim": (
        "How many times was {s} sued by another company from {a} to {b}?",
        "From {a} to {b}, how many companies filed suit against {s}?",
        "How many lawsuits were brought against {s} between {a} and {b}, both days included?",
        "Count the suits that companies filed against {s} from {a} to {b}.",
        "What number of companies took {s} to court from {a} to {b}?",
    ),
    "win": (
        "How many league matches did {s} win from {a} to {b}?", "From {a} to {b}, how often did {s} win?",
        "How many wins did {s} have between {a} and {b}, both days included?",
        "Count the matches that {s} won from {a} to {b}.", "What number of victories did {s} gain from {a} to {b}?",
    ),
    "warning": (
        "How many weather warnings were issued for {s} from {a} to {b}?",
        "From {a} to {b}, how often was {s} put under a weather warning?",
        "How many times did the weather office warn {s} between {a} and {b}, both days included?",
        "Count the weather warnings for {s} from {a} to {b}.",
        "What number of weather warnings did {s} get from {a} to {b}?",
    ),
    "closure": (
        "How many times was the port of {s} closed from {a} to {b}?", "From {a} to {b}, how often did the port of {s} close?",
        "How many closures of the port of {s} were there between {a} and {b}, both days included?",
        "Count the closures of the port of {s} from {a} to {b}.", "What number of times did {s} shut its port from {a} to {b}?",
    ),
}  # fmt: skip

NEVER_TOLD: dict[str, tuple[tuple[str, str], ...]] = {
    "company": (
        ("auditor", "Which firm is the auditor of {s}?"), ("salary", "What salary does the chief executive of {s} draw?"),
        ("ticker", "Under which ticker symbol does {s} trade?"), ("chairs the board", "Who chairs the board of {s}?"),
        ("patents", "How many patents does {s} hold?"),
    ),
    "town": (
        ("twin town", "Which place is the twin town of {s}?"), ("postcode", "What is the postcode of {s} town hall?"),
        ("police chief", "Who is the police chief of {s}?"), ("founding year", "What is the founding year of {s}?"),
        ("altitude", "At what altitude does {s} lie?"),
    ),
    "team": (
        ("capacity", "What is the capacity of the ground of {s}?"), ("physiotherapist", "Who is the physiotherapist of {s}?"),
        ("captain", "Who is the captain of {s}?"), ("mascot", "What is the mascot of {s}?"),
        ("club president", "Who is the club president of {s}?"),
    ),
    "institute": (
        ("endowment", "How large is the endowment of the {s}?"), ("founder", "Who was the founder of the {s}?"),
        ("vessel", "What is the name of the research vessel of the {s}?"), ("motto", "What is the motto of the {s}?"),
        ("enrolled", "How many students are enrolled at the {s}?"),
    ),
}  # fmt: skip
"""Questions about things that are in the news, and the word that no article uses."""
RUMOUR: Wordings = (
    "Which company was {s} said to be in talks to buy on {date}?", "Whom was {s} reported to want to acquire on {date}?",
    "For which company was {s} said to prepare an offer on {date}?",
    "With which takeover target was {s} linked on {date}?", "Which firm was {s} rumoured to be buying on {date}?",
)  # fmt: skip
