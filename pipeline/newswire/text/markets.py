"""Forms of the markets desk: share prices, indexes, key rates, governors."""
# ruff: noqa: E501 - a sentence form is one line

CLOSE = """
# head
- {company.s} stock {close_verb} [{pct}|] [on {factor}|as traders digest {factor}|]
- [Shares in|Shares of] {company} [end|close|finish] at {price}
- [Market|Trading] [brief|wrap|close]: {company.s} at {price}
# lede
- [Trading|Dealing] in {company} [stopped|ended] on {day}, {date}, with the [shares|stock] at {price}, {close_up} {pct}[, a session shaped by {factor}|].
- {price} was the [last|closing] price of {company} on {day}, {date}, [when the shares {close_past} {pct}|{pct} {close_side} the day before].
- [Holders|Owners] of {company} saw [a share|the stock] [finish|end] at {price} on {day}, {date}, {close_up} {pct} [after|on the back of] {factor}.
- [Shares in|Shares of] {company} closed at {price} on {day}, {date}, [having {close_past} {pct}|{close_up} {pct}] [on the day|from the session before][ after {factor}| amid {factor}|].
- {company} [ended|finished] the session of {day}, {date}, at {price} a share, [{close_up} {pct}|having {close_past} {pct}][, as traders [weighed|talked of] {factor}|].
- [At the close|When the bell rang] on {day}, {date}, [a share in|one share of] {company} [cost|was worth] {price}, [{close_up} {pct}|{pct} {close_side} its previous close].
- The stock of {company}, a {trade}, [settled|closed] at {price} on {day}, {date}, [with dealers [pointing|looking] to {factor}|in [thin|busy|nervous] trade].
# body
- The closing price of {company} on {day}, {date}, was {price}.
# detail
- [Spreads|Bid and offer] [stayed|were] [wide|narrow], [a sign|which shows] that [market makers|specialists] [saw|expect] [little|some] [risk|news].
- [A fund|A foundation|An estate] [was said|is thought] to have [sold|bought] [early|through {firm}], [though|but] [nothing|no filing] [confirms|supports] it [yet|so far].
- [Lenders|Borrowers of stock] [charged|paid] [more|less] for [the shares|the paper], and [options|warrants] [lapsed|expired] [unused|without fuss].
- [Charts|Averages] [kept|drawn] by {org} [put|show] the [price|stock] [near|below|above] [its average of {n} weeks|the middle of its range].
- [Volume|Turnover] was [about a third|well|a touch] [above|below] the [monthly average|norm], [data|figures] from {org} [showed|suggested].
- [Short sellers|Small investors|Index funds] were [active|absent] for [most|part] of the [session|afternoon], [a dealer|a broker] at {firm} said.
- [Peers|Rivals|Other {trade}s] [moved|traded] [in step|the other way|sideways], and the [sector|group] [ended|finished] [mixed|little changed|quieter].
- The [shares|stock] had [swung|wandered] [between gains and losses|in a narrow band] [before noon|until the last hour], when [a block|a large order] [changed hands|crossed the board].
- [Some|A few] [houses|brokers] [raised|cut|kept] their [targets|ratings], [citing|pointing to] {factor}.
# quote
- “[Somebody|Someone] [knows|knew] [something|more], or [needs|needed] [cash|a car],” [laughed|said] {analyst2}, [who deals|a dealer] at {firm}.
- “[We|My clients] [hold|wait], and [holding|waiting] is [work|dull],” said {analyst}, [a manager|an adviser] at {org}.
- “[It|This] was [a day for|about] [patience|tidying up|profit taking],” said {analyst}, [a trader|who runs a desk] at {firm}.
- “[Nobody|No one here] [buys|sells] [a rumour|a chart|hope] [twice|at these prices],” [said|remarked] {analyst2} of {org}.
- “I [would not read much|read nothing] into [one close|a single session],” {analyst} [of {org}|at {firm}] [said|cautioned].
# recall
- On {date}, shares in {company} closed at {price}.
- {company} shares had ended the session of {date} at {price}.
- The closing price of {company} on {date} [was|had been] {price}.
"""

INDEX = """
# head
- {index} [ends|closes|finishes] at {points} [points|]
- [Stocks|Shares] in {land} [drift|mixed|settle]: {index} at {points}
# lede
- The {index} [closed|ended|finished] at {points} points on {day}, {date}, [as|while] [exporters|banks|retailers] [gained|slipped] and [shippers|builders] [did the opposite|lagged].
- [Stocks|Share prices] in {land} [drifted|moved] [apart|sideways] on {day}, {date}, and the {index} [settled|closed] at {points} points.
- [At|With] {points} points, the {index} [ended|closed] {day}, {date}, [far from|close to] [its high of the session|where it opened].
# body
- The {index} stood at {points} points at the close on {day}, {date}.
# detail
- [Gainers|Winners] [outnumbered|trailed] [losers|decliners] by [about|roughly] {n} to [two|one], [exchange|bourse] [data|figures] showed.
- [The exchange|Brokers] [blamed|credited] [holiday rosters|a computer change|expiring contracts] for the [late|odd|uneven] [prices|swings].
- [Savers|Retail clients] at {firm} [moved|shifted] [cash|money] into [short bills|funds|gold], [a note|its weekly count] [said|showed].
- [Bond prices|Long bonds] [rose|fell] [a little|a touch] and [the curve|yields] [flattened|steepened], [which|a shape that] {org} [called normal|put down to season].
# quote
- “[Prices|Markets] [walk|sleep|limp] until [someone|the bank] [moves|speaks],” said {analyst} of {org}.
- “[Ask me|Call] [after lunch|next week],” [a dealer|a trader] at {firm} [said|joked], [closing|folding] [a newspaper|the shutters].
# recall
- The {index} [closed|had closed] at {points} points on {date}.
- On {date}, the {index} ended at {points} points.
"""

RATE = """
# head
- Bank of {land} [{rate_verb}|{rate_verb} key rate] to {new}
- {land}: [key rate|rate] [now|set at] {new} [after|from] {old}
- {governor.s} [moves|acts]: [key rate|rate] in {land} goes to {new}
# lede
- The Bank of {land} [{rate_past}|moved] its key rate to {new} from {old} on {day}, [citing|pointing to|in answer to] {reason}.
- The key rate of the Bank of {land} [is|stands at] {new} [after|following] a decision on {day}; [it was|until then it was|before, it had been] {old}.
- [Rate-setters|Policymakers] at the Bank of {land} [voted|agreed] on {day} to [take|bring] the key rate to {new}, [leaving behind|away from] {old}, [because of|with an eye on] {reason}.
- [Borrowers|Savers] in {land} [face|got] a new key rate on {day}: the Bank of {land} [{rate_past}|set] it to {new} [from|after] {old}.
# body
- [From today|With immediate effect], the key rate of the Bank of {land} is {new}, [against|not] {old} before.
- The Bank of {land} [had kept|had left] its key rate at {old} [for {n} months|since an earlier meeting] before it [went|turned] to {new}.
# detail
- [The vote|The panel] was [unanimous|{n} to one|split], [minutes|a statement] [will show|suggests], with [one member|a dissenter] [asking|arguing] for [more|no move|delay].
- [Lenders|Commercial banks] [follow|will follow] [within days|at month's end], [mortgage brokers|{firm}] said, [though|but] [savers|depositors] [wait longer|see little].
- [Exporters|Builders|Shopkeepers] [welcomed|regretted] the [step|timing], while [unions|pensioners] [asked|warned] [about|of] [rents|food prices|wages].
- [Forecasts|Projections] [see|put] inflation [near target|a shade lower|back in range] [by next year|within {n} quarters].
- The [currency|exchange rate] [barely stirred|eased|firmed] [after|on] the [announcement|news], [dealers|traders] at {firm} said.
# quote
- “We [lean|act] [against the wind|early], and [we|the bank] will [stop|look again] [when prices do|in {n} weeks],” [said|explained] Governor {governor}.
- “[This|It] was [the least surprising|a bold|a half-hearted] [move|step] of the [season|year],” said {analyst} of {org}.
# recall
- The Bank of {land} [moved|took] its key rate to {new} on {date}, from {old}.
- Since {date}, the key rate of the Bank of {land} has been {new}[, after {old}|].
"""

GOVERNOR = """
# head
- {new} [to head|takes over|named governor of] Bank of {land}
- {new.s} [follows|replaces] {old.s} at Bank of {land}
# lede
- {new} became governor of the Bank of {land} on {day}, [succeeding|replacing] {old}, [whose term had run out|who goes back to teaching|who asked to be released].
- The Bank of {land} has a new governor: {new} [took|accepted] the [seat|post] on {day} [from|after the exit of] {old}.
- [Lawmakers|A committee] in {land} [confirmed|approved] {new} as governor of the Bank of {land} on {day}, [in place of|to succeed] {old}.
# body
- As governor of the Bank of {land}, {new} [inherits|takes over] from {old} a [divided|tired|small] [panel|board] and a key rate [under debate|that nobody loves].
# detail
- [Printers|Clerks] will [need|want] {n} weeks to [change|engrave] the [signature|plates] on the [notes|banknotes].
- [Colleagues|Students|Former clerks] [describe|recall] [a careful|a dry|a stubborn] [economist|reader of footnotes], [fond|not fond] of [graphs|chess|long walks].
- [Markets|Dealers] [shrugged|took the news calmly], [as|since] [the choice|the name] had been [expected|leaked|in the air].
# quote
- “[Money|Trust] is a [promise|habit],” {new.s} [said|told the hall]. “[We|I] [intend|mean] to [keep it|be dull].”
- “[The|A] [bank|board] [needs|wanted] [calm|new eyes],” {analyst} of {org} said.
# recall
- {new} [has been|has served as] governor of the Bank of {land} since {date}, when {old} left.
"""
