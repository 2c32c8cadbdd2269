"""Forms of the weather desk: days measured, warnings, lists."""
# ruff: noqa: E501 - a sentence form is one line

REPORT = """
# head
- {townname} [reaches|warms to|gets to] {high} [as {sky} moves in|under {sky}|]
- [Weather|The sky over {townname}]: {sky}, {high}
- {high} in {townname} [after|with] {sky}
# lede
- [Shutters|Windows] [opened|closed] in {townname} on {day}, {date}, as {sky} [came|went] and the [temperature|mercury] [peaked|stopped] at {high}.
- It [got|was] no warmer than {high} in {townname} on {day}, {date}, [with|under] {sky}, [observers|station keepers] said.
- [Observers|The station] in {townname} [read|logged] {high} as the high of {day}, {date}, [under|amid] {sky}.
- {townname} [reached|recorded|measured] a high of {high} on {day}, {date}, [under|with] {sky}.
- The [mercury|thermometer] in {townname} [climbed|rose|crept] to {high} on {day}, {date}, [with {sky}|before {sky} set in], the [weather office|observatory] said.
- [On {day}|As {day} went by], {date}, {sky} [hung|passed] over {townname}, where the high was {high}.
- A high of {high} [was noted|was read off|went into the books] in {townname} on {day}, {date}, [a day of|under] {sky}.
# body
- The highest reading in {townname} on {day}, {date}, was {high}.
# detail
- [Gulls|Crows|Swifts] [kept|flew] low over the [allotments|mill pond], which [old hands|fishers] [take|read] as [a sign of rain|a promise].
- [The old record|The highest mark] for the [date|week] [dates|is] from [a summer|a year] that [few|nobody] [remember|remembers] [fondly|well].
- [Trains|Trams] ran [to time|late], [wires|rails] [expanding|icing] [a little|as ever], and [the heating|fans] in [schools|offices] [came on|stayed off].
- [Visibility|The view] from the [tower|hill] was [good|poor], [{n} kilometres|as far as the next spire] at [best|noon].
- The night before had [brought|seen] {low}, [with ground mist in the hollows|and the wind fell away|and roofs were white in the outskirts|and few slept with windows open].
- Winds [from the {quarter}|out of the {quarter}] [blew|came] at [up to|about] {n20} kilometres an hour, [enough to|and] [rattle shutters|bend the poplars|empty the pier].
- [Humidity|Air pressure] [fell|rose|held steady] [through the day|after lunch], [a sign|which means] [of change|little], [said|according to] the [duty forecaster|observer], {analyst}.
- [Tomorrow|The next day] [should|may] [bring|see] [a few showers|more of the same|longer sunny spells|a change of wind], with [readings|highs] [a little lower|much the same|slightly higher].
- [The river|Lake levels|The tide] [stood|stood at marks] [near|a hand above|below] the [seasonal|usual] [line|mark], and [barges|anglers] [had an easy day|kept away].
- Pollen [counts|levels] were [low|moderate|high], [chiefly|mostly] [birch|grass|alder], and [asthma patients|runners] were [told to take care|advised to go out early].
# quote
- “[Coats|Hats] [on|off], [coats|hats] [off|on]: that is [the month|this coast] for you,” [said|laughed] {analyst2}, [a market trader|a tram driver|who rents out boats] in {townname}.
- “The [models|charts] [quarrel|disagree] [beyond|after] [day three|the weekend],” {analyst} [admitted|said]. “[I would|You should] [pack|plan] for both.”
# recall
- On {date}, the high in {townname} was {high}.
- {townname} [had measured|had recorded] a high of {high} on {date}.
"""

WARNING = """
# head
- [Warning|Alert] of {hazard} for {townname}
- {townname} [braces for|warned of] {hazard}
- {level} warning: {hazard} [near|at|around] {townname}
# lede
- [Sirens were tested|Flags went up] in {townname} on {day}, {date}, after the weather office warned of {hazard}.
- [A|An official] warning of {hazard} [went out|was sent] to {townname} on {day}, {date}, [by radio and telephone|before dawn|as {sky} moved in].
- The weather office [issued|raised|put out] [a|an official] warning of {hazard} for {townname} on {day}, {date}.
- {townname} was [placed|put] under a warning of {hazard} on {day}, {date}, [the weather office said|by the weather office|in force until the next morning].
- [Residents|People] in {townname} were warned of {hazard} on {day}, {date}, [as {sky} [drew|closed] in|after {sky}].
# body
- The warning of {hazard} for {townname} on {day}, {date}, [is|was] of the {level} level, [the second of three|one below the highest|the lowest in use].
# detail
- [Markets|Stallholders] [packed up|tied down awnings] and [hotels|inns] [took in|offered beds to] [campers|stranded drivers].
- [The forecast|Models] [sees|see] the [worst|peak] [after midnight|before noon|in the evening], [easing|fading] [later|by the next day].
- [Fire crews|Volunteers|Road services] [checked|cleared] [pumps|culverts|sandbags] and [closed|fenced off] [two|{n}] [footpaths|underpasses|car parks].
- [Schools|Kindergartens] [stay open|close at noon], but [outings|sports days] are [off|postponed], the [district|town hall] said.
- [Ferries|Buses|Cable cars] [may|could] [stop|run late] [at short notice|after dark], [operators|the port office] [warned|said].
- The [last|previous] [alert|scare] of the kind [caused|left] [little damage|flooded cellars|a felled chestnut], [insurers|{firm}] [recall|reckon].
# quote
- “[Stay|Keep] [indoors|off the pier] and [charge|check] your [lamps|phones],” said {analyst}, who [leads|runs] the [emergency desk|watch room].
- “[Better|I prefer] a warning [too many|in vain] than [one too few|a wet archive],” [said|remarked] {analyst2} of the [district|rescue] service.
# recall
- {townname} had been under a warning of {hazard} on {date}.
- On {date}, the weather office warned of {hazard} in {townname}.
"""

LIST_HEAD = """
# head
- [Highs of the day|Readings at a glance|Around the stations]: {date}
- [Temperatures|How warm it was] on {date}
- [Station list|The day in degrees], {day}
# lede
- [Readings|Highs] from [stations|observers] [across the region|in several countries] for {day}, {date}, [follow|are listed below].
- [Here are|These are] the highs [measured|read off] on {day}, {date}, [as sent in by|according to] [volunteers|observers|automatic stations].
# detail
- [Readings|Figures] are [rounded|given] [to|in] whole degrees, and [late|missing] ones [are|will be] added [in the evening|the day after].
- [Stations|Masts] [above the tree line|on the islands|at two airfields] [sent|gave] no [figures|data] because of [a power cut|ice|repairs].
"""
LIST_LINES = (
    "- On {date}, {town} reached {high}[, with {sky}|, under {sky}|].",
    "- {town}: a high of {high} on {date}[, {sky}|].",
    "- In {town}, {sky} and a high of {high} on {date}.",
)
"""Forms of one line; `{town}` and `{high}` stand for the numbered slots."""
