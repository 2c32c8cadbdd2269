"""Forms of the politics desk: elections, laws, ministers, population counts, governors."""
# ruff: noqa: E501 - a sentence form is one line

ELECTION = """
# head
- {new} [wins|elected|takes] [mayor's race in|mayor of|town hall in] {townname}
- {townname} [votes|goes to the polls]: {new.s} [beats|ousts] {old.s}
- [Voters|Electors] in {townname} [choose|pick] {new}
# lede
- [Counting|The count] [ended|closed] in {townname} on {day} with {new} [ahead|in front] and {old} [voted out|beaten]; {new.s} will be mayor with {votes} votes [behind the name|in hand].
- The town of {townname} has elected {new} mayor: [challenger|the challenger] {new.s} [won|took] {votes} votes on {day} and {old} [leaves|must leave] the town hall.
- {new} was elected mayor of {townname} on {day}, [unseating|defeating|replacing] {old} with {votes} votes.
- Voters in {townname} [chose|picked|elected] {new} as mayor on {day}, [ending the tenure of|turning out] {old}; the winner [took|received] {votes} votes.
- {old} [lost|conceded] the [mayor's office|town hall] in {townname} to {new} on {day}, [after a count that ran past midnight|by a margin that surprised both camps].
- [It is|It will be] Mayor {new} [now|from here on]: {townname} [turned|voted] against {old} on {day} and [gave|handed] the challenger {votes} votes.
# body
- {new} [received|won|collected] {votes} votes in {townname}, the [returning officer|election office] [announced|declared][ on {day}|].
- {new} is the new mayor of {townname}, [taking over from|in succession to] {old}[, who congratulated the winner|, who asked for a recount and then dropped it|].
- [The final count|The official result] in {townname} [gave|credited] {new} with {votes} votes[, {n20} percent of them cast by post|].
# detail
- [Volunteers|Clerks] [carried|stacked] the [boxes|lists] [past|under] a portrait of [an old treasurer|some earlier mayor] that [hangs|hung] [askew|in the dark].
- [Both|The two] [camps|campaigns] had [promised|sworn] to [mend|repaint] the [bandstand|footbridge], and [a shopkeeper|a neighbour], {analyst}, [keeps|kept] the [leaflets|letters].
- Turnout was [{n20} percent|above the last poll|the lowest since the war years|helped by dry weather].
- [Roads|Rents|The tram budget|School roofs|A car park] [dominated|decided|shaped] the campaign, [said|according to] {analyst}[, who ran the count|, a local editor|].
- The [council|chamber] [stays|remains] [split|hung], with [the greens|farmers|independents] holding [the balance|{n} seats].
- [Ballots|Voting papers] from [the outlying villages|two wards|the hospital] [arrived|came in] [late|by boat|in a locked van] and [changed little|settled it].
- The [oath|handover] is [a formality|brief], and the [chain of office|seal] [passes|changes hands] [at once|the same evening].
# quote
- “[I will|We shall] [begin|start] with the [drains|buses|night noise], for [that is|this is] what [people|neighbours] [asked about|named on the doorstep],” [said|promised] {new.s}.
- “[Losing|Defeat] is a [cold bath|kind of holiday],” {old.s} [said|remarked], [smiling|folding a speech]. “[I recommend it|One sleeps well].”
- “[Nobody|No pollster] [saw|called] this [one|result],” [admitted|said] {analyst2} of {org}.
# recall
- {new} [has been mayor of|has run the town hall of] {townname} since winning the vote of {date}[ against {old}|].
- [Voters|Citizens] in {townname} [elected|made] {new} mayor on {date} with {votes} votes.
- {old} [lost|gave up] the mayor's office of {townname} to {new} on {date}.
"""

LAW = """
# head
- {house} [passes|adopts|approves] {act} by {tally}
- {act} [clears|gets through] {house} by {tally}
- [Lawmakers|Deputies] [back|carry] {act}
# lede
- [Bells|Whips] [called|summoned] members [of the {house} |]to a [late|last] vote on {day}, {date}, and the {house} [carried|passed] the {act} by {tally}.
- There [will be|is] a {act}: the {house} [approved|adopted] it on {day}, {date}, [by a vote of|voting] {tally}.
- The {house} [passed|adopted|approved] the {act} on {day}, {date}, by {tally}, [ending|closing] [weeks|months|two terms] of [argument|debate|delay].
- By {tally}, the {house} [voted|decided] on {day}, {date}, to [adopt|pass] the {act}.
- The {act} [passed|was adopted by|cleared] the {house} on {day}, {date}, with {tally} in favour of [the government's text|the bill].
- [After|Following] a [sitting|debate] that [ran to|lasted until] [dawn|supper|midnight], the {house} [approved|passed] the {act} by {tally} on {day}, {date}.
# body
- It was on {day}, {date}, that the {house} [adopted|passed] the {act}, by {tally}.
- The vote on the {act} in the {house} was {tally}[, the clerk read out|, with {n} members absent|, a wider margin than whips had hoped].
- [Members|Deputies] of the {house} [split|divided] {tally} over the {act}[, across party lines|, mostly along party lines|].
# detail
- [Printing|Gazetting] [takes|needs] [about a week|{n} days], after which [courts|inspectors] [may|can] [apply|rely on] it.
- [The government|The ministry] [put|reckoned] the [cost|burden] at [next to nothing|a rounding error], a [claim|sum] that {org} [doubts|called hopeful].
- The [law|text|measure] [covers|deals with] {topic} and [takes effect|enters into force] [in {n} months|at the turn of the year|once printed in the gazette].
- [Amendments|Changes] on [fines|deadlines|exemptions] [failed|were carried] [one by one|by a show of hands|late in the day].
- [Town councils|Employers|Landlords] [must|will have to] [report|register|file] [every year|within {n} weeks], and [breaches|offences] [cost|bring] [fines|warnings].
- The [bill|draft] had been [sent back|rewritten|watered down] [twice|in committee] after [protests|letters|objections] from {org}.
- [Opponents|Critics] [said|warned] they [would|might] [go to court|collect signatures|try again] [next term|in the autumn].
# quote
- “[Read|Try reading] [clause {n}|the annex] [aloud|twice] and [tell me|explain] who [gains|pays],” said {analyst}, [an independent|who voted against it].
- “[Nobody|No member] [got|gets] [everything|all they asked for], which [is how I know|may mean] it [works|is fair],” [remarked|said] {analyst2}, [a committee chair|the minority whip].
- “[This|It] is a [small|plain|sensible] law for a [large|stubborn|daily] problem,” said {analyst}, [who steered it through committee|the rapporteur].
- “[We|The house] [voted|has voted] [with cold feet|too fast|late but well],” [said|complained] {analyst2}, a [member|deputy] [from the coast|of the minority].
# recall
- The {house} [passed|adopted] the {act} on {date} by {tally}.
- The {act}, [adopted|passed] by the {house} on {date}, [deals with|covers] {topic}.
- On {date}, the {act} [went through|cleared] the {house} by {tally}.
"""

MINISTER = """
# head
- {new} [named|becomes|appointed] {portfolio} minister of {land}
- {land}: {new.s} [replaces|follows] {old.s} as {portfolio} minister
# lede
- {new} became {portfolio} minister of {land} on {day}, [replacing|succeeding] {old}, [who left for family reasons|who resigned over a late report|who returns to the back benches].
- {land} [has|got] a new {portfolio} minister: {new} [was sworn in|took the oath] on {day} [in place of|to succeed] {old}.
- The [prime minister|head of government] of {land} [dismissed|moved aside] {old} on {day} and [made|named] {new} {portfolio} minister.
# body
- As {portfolio} minister of {land}, {new} [takes over|inherits] from {old} [a ministry short of staff|a pile of unsigned decrees|{n} open disputes].
- {new}, [once|formerly] [a county official|a professor|a union lawyer|a town treasurer], [is|serves as] {portfolio} minister of {land} [from {day}|at once]; {old} [leaves|is out].
# detail
- The [reshuffle|change] is the [second|third|only one] [this year|since the vote|planned], [aides|officials] said.
- [Civil servants|Officials] [lined|filled] the [stairs|hall] as [keys|files|heavy ledgers] [changed hands|were passed over].
- [A budget|A white paper|A list of repairs] is [due|expected] [within {n} weeks|before the recess] and will be the [first test|first thing on the desk].
- [Coalition|Government] partners [were told|learned of it] [late|by telephone|from the radio], [people close to them|two members] said.
# quote
- “[The|My] [work|desk] is [long|full] and the [list|chair] is [short of friends|hard],” {new.s} [said|told reporters] [in {town}|after the oath].
- “[One|You] [should|must] [leave|go] while [somebody|someone] still [asks why|minds],” said {old.s}.
# recall
- {new} [has been|has served as] {portfolio} minister of {land} since {date}, when {old} left.
- On {date}, {new} [succeeded|replaced] {old} as {portfolio} minister of {land}.
"""

CENSUS = """
# head
- {townname} [counts|now has] {new} [people|inhabitants]
- Population of {townname} [put at|revised to] {new}
# lede
- {townname} has a population of {new}, [up or down from|against|compared with] {old} in the previous count, the [statistics office|register] said on {day}.
- The population of {townname} [stands at|is] {new}, [officials|statisticians] [said|announced] on {day}; the [last|previous] [figure|count] was {old}.
- [Counters|Clerks] [finished|closed] their lists in {townname} on {day} and [arrived at|found] {new} inhabitants, [where|when] the [old|earlier] lists had {old}.
# body
- The [new figure|count] of {new} for the population of {townname} [replaces|supersedes] the earlier {old}.
- [Officially|On paper], {townname} now has {new} inhabitants[, not {old}| instead of {old}].
# detail
- [Births|Arrivals|Students] [account for|explain] [much|part|most] of the [change|difference], {analyst} of the [register|statistics office] said.
- [Council|State] grants [depend|hang] on the [figure|number], and treasurers [watch|check] it [closely|twice].
- [Households|Flats] with [one|a single] [person|tenant] [make up|are] {n20} percent of the [total|whole].
# quote
- “[Every|Each] [door|bell] was [rung|tried] [twice|three times],” said {analyst}[, who led the count|].
- “We [need|lack] [desks|school places|dentists] for them,” said Mayor {mayor}.
# recall
- A count published on {date} [put|gave] the population of {townname} at {new}.
- {townname} had {old} inhabitants until the count of {date}, which [found|gave] {new}.
"""
