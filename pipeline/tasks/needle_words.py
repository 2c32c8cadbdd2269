"""The words of the needle grammar: kinds of secrets, ways to tell one, ways to ask for it. All our own text.

Each list of forms holds pairs: with the owner's name, and without. The first part of every table is for training,
the second is held out; nothing of a held-out form stands in a trained one.
"""

from __future__ import annotations

KINDS_OF_DIGITS: dict[str, tuple[str, ...]] = {
    "train": (
        "access code", "magic number", "invoice number", "locker combination", "membership number", "serial number",
        "account number", "case number", "order number", "vault code", "batch number", "permit number",
        "telephone number", "meter reading", "lottery number", "archive key",
    ),
    "held_out": (
        "tracking number", "badge number", "gate PIN", "booking reference", "licence plate digits",
        "patient number", "warehouse slot", "passport number",
    ),
}  # fmt: skip
KINDS_OF_WORDS: dict[str, tuple[str, ...]] = {
    "train": ("password", "code name", "call sign", "secret phrase", "watchword", "working title"),
    "held_out": ("safe word", "nickname", "passphrase"),
}
SENTENCES: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (
        ("The {noun} of {name} is {value}.", "The {noun} is {value}."),
        ("{name} has the {noun} {value}.", "There is a {noun}, and it is {value}."),
        ("For {name} the {noun} was set to {value}.", "The {noun} was set to {value}."),
        ("Note that {value} is the {noun} of {name}.", "Note that {value} is the {noun}."),
        ("According to the register, {name}'s {noun} reads {value}.",
         "According to the register, the {noun} reads {value}."),
        ("Remember this: {value}, the {noun} given to {name}.", "Remember this: {value}, the {noun}."),
        ("When {name} was asked for the {noun}, the reply was {value}.",
         "When somebody asked for the {noun}, the reply was {value}."),
        ("The clerk wrote down {value} as the {noun} of {name}.", "The clerk wrote down {value} as the {noun}."),
        ("{value} has been the {noun} for {name} since last spring.",
         "{value} has been the {noun} since last spring."),
        ("On the envelope for {name} stood one line: {noun} {value}.",
         "On the envelope stood one line: {noun} {value}."),
        ("It turned out that {name} chose {value} as {noun}.", "It turned out that {value} was chosen as {noun}."),
        ("{name} - {noun}: {value}.", "{noun}: {value}."),
        ("Anyone who calls about {name} must quote the {noun} {value}.",
         "Anyone who calls must quote the {noun} {value}."),
        ("The {noun} that belongs to {name}, {value}, must not be lost.", "The {noun}, {value}, must not be lost."),
        ("By order of the board, {name} received the {noun} {value}.",
         "By order of the board, a {noun} was issued: {value}."),
        ("Do not confuse it: the {noun} of {name} is {value} and nothing else.",
         "Do not confuse it: the {noun} is {value} and nothing else."),
    ),
    "held_out": (
        ("Whoever deals with {name} needs {value}, which is its {noun}.",
         "Everybody here needs {value}, our {noun}."),
        ("Scribbled beside {name} in the ledger one finds {value} under \"{noun}\".",
         "Scribbled in the ledger one finds {value} under \"{noun}\"."),
        ("\"My {noun}? {value},\" said the person from {name}.", "\"My {noun}? {value},\" said the visitor."),
        ("Last updated today, {name} ({noun} {value}) remains on file.",
         "Last updated today, {noun} {value} stays on file."),
        ("They engraved {value} on a plate so that {name} would never forget its {noun}.",
         "They engraved {value} on a plate so that nobody would forget the {noun}."),
        ("If you ever lose it, {name} goes by {noun} {value}.", "If you ever lose it, our {noun} remains {value}."),
        ("Among the papers of {name} lay a card with the {noun}; it showed {value}.",
         "Among the papers lay a card with the {noun}; it showed {value}."),
        ("We confirm to {name} in writing that {value} shall serve as {noun} from now on.",
         "We confirm in writing that {value} shall serve as {noun} from now on."),
    ),
}  # fmt: skip
QUESTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (
        ("What is the {noun} of {name}?", "What is the {noun}?"),
        ("Which {noun} does {name} have?", "Which {noun} was given?"),
        ("Give the {noun} of {name}.", "Give the {noun}."),
        ("What does {name}'s {noun} read?", "What does the {noun} read?"),
        ("The text names a {noun} for {name}. What is it?", "The text names a {noun}. What is it?"),
        ("Tell me the {noun} that belongs to {name}.", "Tell me the {noun} that was mentioned."),
        ("Which {noun} must one quote for {name}?", "Which {noun} must one quote?"),
        ("What {noun} was noted for {name}?", "What {noun} was noted?"),
    ),
    "held_out": (
        ("I am looking for the {noun} under which {name} is known; can you find it?",
         "I am looking for the {noun}; can you find it?"),
        ("{name}: {noun}?", "{noun}?"),
        ("Earlier you read about {name}. Repeat its {noun}.", "Earlier you read a {noun}. Repeat it."),
        ("How does the {noun} registered to {name} go?", "How does the {noun} go?"),
    ),
}  # fmt: skip
NAMES: tuple[str, ...] = (
    "Lindholm", "Port Elswick", "the Tarn ferry", "Maria Oduya", "Kestrel Foods", "the harbour office", "Oberau",
    "Tom Reiss", "the northern depot", "Ana Petrov", "the city museum", "Varna Mill", "Professor Ikeda",
    "the blue lorry", "Saltmarsh Farm", "the night ward", "Emil Castellan", "the observatory", "Quarry Lane",
    "the third tram line", "Hanne Dreyer", "the old brewery", "Fenwick Hall", "the rowing club", "Captain Abara",
    "the seed bank", "Grey Pine School", "Otto Valtari", "the lighthouse", "Miller Street", "the glass works",
    "Irene Sokol", "the east reservoir", "Dune Hotel", "the choir", "Rafael Montoya", "the ice rink", "Amber Court",
    "the printing house", "Nadia Rahal", "the botanic garden", "Corran Bridge", "the cable car", "Yusuf Demir",
    "the toy shop", "Halden Airfield", "the weather station", "Lucia Ferrant", "the quiet library", "Brook End",
)  # fmt: skip
WORDS: tuple[str, ...] = (
    "amber", "falcon", "velvet", "lantern", "copper", "meadow", "thunder", "saffron", "pebble", "orchid", "marble",
    "walnut", "crimson", "glacier", "violin", "ribbon", "cobalt", "harvest", "mirror", "dragon", "silver",
    "compass", "juniper", "canyon", "feather", "anchor", "ginger", "puzzle", "rocket", "willow", "magnet",
    "tulip", "badger",
    "candle", "hazel", "ivory", "jasper", "kettle", "lemon", "mustard", "nectar", "onyx", "parrot", "quartz",
    "raven", "sable", "timber", "umber", "viper", "walrus", "yarrow", "zephyr",
)  # fmt: skip
