"""Forms of the science desk: directors, moves of researchers, prizes, finds."""
# ruff: noqa: E501 - a sentence form is one line

DIRECTOR = """
# head
- {new} [to direct|heads|takes over] {institute.s}
- {institute.s} [names|picks] {new.s} [as director|to follow {old.s}]
# lede
- {new} became director of the {institute} on {day}, [succeeding|replacing] {old}, [who retires|who returns to the laboratory|whose mandate had ended].
- The {institute} [named|chose] {new} as director on {day} [in place of|to succeed|after the departure of] {old}.
- {old} [handed|passed] the keys of the {institute} to {new}, its new director, on {day}.
# body
- As director of the {institute}, {new} [follows|takes over from] {old} and [inherits|will oversee] [a backlog of samples|a leaking roof|two expeditions].
# detail
- [A committee|A search panel] [read|sifted] {n20} [applications|letters] and [heard|met] {n} [candidates|people] [in two rounds|behind closed doors].
- The [budget|grant] [has been|was] [frozen|trimmed|raised slightly] [for {n} years|since the spring], and [posts|benches] [stand empty|are shared].
- [Field work|Teaching] will [go on|continue] [as planned|with smaller groups], the [office|registry] [said|let it be known].
# quote
- “[Good|Slow] [science|work] needs [dry socks|spare fuses] and [time|silence],” said {new.s}. “[I will|Let me] [find|ask for] both.”
- “[Nobody|No one] [misses|likes] the [forms|meetings], and [everyone|I] will miss {old.s},” said {analyst}, [a glassblower|a librarian] there.
# recall
- {new} [has directed|has been director of] the {institute} since {date}, when {old} left.
"""

JOIN = """
# head
- {scientist} [joins|moves to] {new.s}
- {new.s} [hires|recruits] {scientist.s} from {old.s}
# lede
- The {new} [hired|recruited|took on] the researcher {scientist} from the {old} on {day}.
- {scientist} [left|quit] the {old} on {day} [to join|for] the {new}, [both said|the two houses confirmed|colleagues said].
- [Researcher|The scientist] {scientist} [moved|moves] to the {new} on {day} after [years|{n} years] at the {old}.
# body
- {scientist} now works at the {new}, [no longer|and no longer] at the {old}.
# detail
- The [move|transfer] [brings|takes along] [two assistants|a freezer of samples|a grant for {n} years] and a [microscope|spectrometer|drill] that [needs|weighs as much as] [a van|a lorry].
- [Rival|Other] [houses|laboratories] had [made offers|called] since [a paper|a lecture] on {subject} [drew notice|was read widely].
# quote
- “[I go|One goes] where the [mud|data|light] is [best|thickest],” {scientist.s} said.
# recall
- The researcher {scientist} has worked at the {new} since {date}, when [a contract|work] at the {old} [ended|stopped].
"""

PRIZE = """
# head
- {scientist} [wins|takes|awarded] {prize}
- {prize} [goes to|for] {scientist.s} [of {institute.s}|]
# lede
- {scientist} won the {prize} of {year} on {day} for work on {subject}, [the jury|the foundation] [said|announced].
- The {prize} of {year} [goes|went] to {scientist} for [studies of|research on] {subject}, [it was announced|the jury said] on {day}.
- [Years|A decade] of work on {subject} [earned|brought] {scientist} the {prize} of {year} on {day}.
# body
- The jury of the {prize} of {year} [cited|praised] {scientist} for [patient|original] work on {subject}.
# detail
- The [medal|diploma] [comes|is paired] with [a purse|a sum] [enough for|that buys] [a new boat|two assistants|a long holiday] and [a dinner|a bust|a week of interviews].
- The jury [met|sat] for {n} [hours|days] and [had|read] {n20} [nominations|files], {analyst}, its [secretary|chair], said.
- [Critics|Younger colleagues] [note|complain] that the [award|list of winners] [favours|rewards] [old|large] [houses|laboratories].
# quote
- “[I was|We were] [washing|counting] [beakers|jars] when they [rang|called],” {scientist.s} [said|recalled]. “[I thought|It sounded like] [a wrong number|a bill].”
# recall
- {scientist} won the {prize} of {year}, awarded on {date}, for work on {subject}.
"""

FIND = """
# head
- {institute.s} [team|divers|crew] [finds|find|report] {thing} [{depth} down|near {townname}|]
- {thing} [found|discovered|turns up] near {townname}
# lede
- [Cores|Sonar images|Cables] [led|guided] the {institute} to {thing} at a depth of {depth} near {townname}, [a statement said|it reported] on {day}, {date}.
- The {institute} [has found|found] {thing}: it lies {depth} down near {townname}, [scientists|the crew] said on {day}, {date}.
- Researchers of the {institute} found {thing} at a depth of {depth} near {townname}, they [said|reported] on {day}, {date}.
- [A team|A crew] from the {institute} [discovered|came upon|located] {thing} near {townname} at a depth of {depth}, it [said|announced] on {day}, {date}.
- {thing}, {depth} [below|under] the [surface|ground] near {townname}: that is the [find|discovery] [announced|made public] by the {institute} on {day}, {date}.
# body
- The depth of the find announced by the {institute} on {day}, {date}, was {depth}.
- What the {institute} found near {townname}, as [announced|made public] on {day}, {date}, was {thing}.
# detail
- [Funds|Money] for a [second|longer] [season|dive] [must|have to] be [found|voted], and [the boat|the rig] is [lent|promised] [elsewhere|to others] until [spring|autumn].
- [Maps|Charts] [drawn|printed] [earlier|long ago] show [nothing|plain mud] at the [place|spot], {analyst3} [noted|said].
- [Sand|Silt] [covered|hid] [most|half] of it, and [brushes|pumps] [worked|ran] [for days|by lamp].
- [Samples|Scans|Casts] [went|were sent] to [two|{n}] laboratories for [dating|analysis], and [first|early] results are [due|expected] in {n} [weeks|months].
- The [crew|team] had [searched|looked] for [something else|a lost buoy|old cables] when [a sonar trace|a drill bit|a student] [hit|stopped at|noticed] [an edge|a shadow].
- [Locals|Fishers|Quarry workers] [had spoken|told stories] of [a shape|a noise|an echo] [there|in the area] for [years|generations].
# quote
- “We [saw|thought it was] a [door|shadow] [on the screen|in the silt] and [nobody|none of us] [spoke|breathed],” said {analyst}, who [led|joined] the [dive|survey|drilling].
- “[One|A single] find [is not|makes no] [a theory|theory],” [warned|said] {analyst2} of {org}.
# recall
- On {date}, the {institute} [reported|announced] the find of {thing} near {townname} at a depth of {depth}.
"""
