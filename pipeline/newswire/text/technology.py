"""Forms of the technology desk: products, breaches."""
# ruff: noqa: E501 - a sentence form is one line

LAUNCH = """
# head
- {company} [launches|unveils|presents] {new} [at {price}|]
- {new}: [what {company.s} promises|{company.s} shows its next {noun}]
- [New from|Out now from] {company.s}: {new} [replaces|follows] {old}
# lede
- [Dealers|Shops] [unpacked|received] the {new} by {company} on {day}; at {price} it [follows|replaces] the {old}.
- {company} [launched|unveiled|presented] the {new} on {day}, [successor to|which takes the place of|following] the {old}, at a price of {price}.
- The {new}, [a {noun}|the latest {noun}] from {company}, [went on sale|came out] on {day} for {price} and [replaces|takes over from] the {old}.
- [After|Following] [months|a year] of [hints|teasers], {company} [showed|revealed] the {new} on {day}; [its newest product|it] [costs|will cost] {price}.
- {company} [retired|put away] the {old} on {day} and [brought out|introduced] the {new} as its newest product.
# body
- The {new} by {company} [sells for|costs|is priced at] {price}[, before tax|, in three colours|, with two years of cover|].
- [With|By bringing out] the {new}, {company} [replaces|retires] the {old}[, for which spare parts stay on sale|, a slow seller of late|].
# detail
- [A cheaper|A smaller] [version|sister] is [hinted at|in the drawer] for [next year|the holidays], [according to|says] {analyst2}, [a supplier|who makes hinges].
- [Packaging|The box] [is|was] made [of|from] [straw|old maps|pressed leaves] and [can|may] be [planted|returned|eaten by rabbits].
- [Early testers|Reviewers|Shop staff] [praised|liked] the [battery|hinge|sound|packaging] and [grumbled|complained] about [the price|the manual|a missing cable|the weight].
- [Stocks|Supplies] are [limited|thin] until [a second line|a new supplier|the plant in the south] [starts|joins in] [next month|within {n} weeks].
- The [design|shape] [owes|borrows] [something|a little] to [{firm}|a tea tin|old radios], [said|noted] {analyst2} of {org}.
- [Owners|Buyers] of the [predecessor|older model] [get|are offered] a [rebate|trade-in] of [a tenth|a fifth] [until|through] [the end of the month|the holidays].
- [It|The machine] [listens|answers] to [{n}|two] languages and [forgets|deletes] [what it hears|its logs] after {n20} [hours|days], the [maker|company] [says|promises].
# quote
- “We [took|left] out [everything|all] that [beeped|broke|nobody used],” [said|explained] {ceo}, the chief executive.
- “[I have|My desk has] [seen|outlived] {n} of these, and [this one|the latest] [does not pretend|opens without tools],” said {analyst}, who [reviews|repairs] [gadgets|such things] [for a living|in {town}].
# recall
- The {new} has been the newest product of {company} since {date}, when it [replaced|followed] the {old}.
- {company} [launched|brought out] the {new} on {date} at {price}.
"""

BREACH = """
# head
- [Data breach|Leak|Break-in] at {company} [hits|touches] {accounts} accounts
- {company.s} [admits|confirms] [breach|leak] of {accounts} accounts
# lede
- [Customers|Clients] of {company} [learned|were told] on {day}, {date}, that {accounts} accounts had been [opened|copied] by [intruders|strangers].
- {accounts} accounts: that is the [toll|size] of a break-in [at|admitted by] {company}, [disclosed|made public] on {day}, {date}.
- {company} [said|admitted|disclosed] on {day}, {date}, that [intruders|attackers|thieves] had [reached|copied|opened] {accounts} accounts [of its customers|].
- A [breach|break-in] at {company} [exposed|touched] {accounts} accounts, the {trade} [said|confirmed] on {day}, {date}.
- [Details|Records] from {accounts} accounts at {company} [were copied|leaked out], it [emerged|was confirmed] on {day}, {date}.
# body
- {company} [put|gave] the number of accounts in the breach made public on {day}, {date}, at {accounts}.
# detail
- [Backups|Copies] were [whole|unharmed], and [shops|warehouses] [worked|ran] [on paper|as usual] for [a day|{n} hours].
- [A ransom note|A message] [arrived|came] [misspelt|in rhyme] and [was|went] [unanswered|to the police].
- [Staff|Employees] [changed|must change] [badges|passphrases] and [sat|will sit] through [a lesson|{n} lessons] on [links|strangers].
- [Names|Addresses] and [order lists|telephone numbers] were [taken|copied]; [passwords|card numbers] were [scrambled|stored elsewhere], [said|according to] {analyst}, [the security chief|an outside examiner].
- The [door|way in] was [an old test server|a lost laptop|a supplier's login|a forgotten printer], [{firm}|investigators] [found|reported].
- [Regulators|Data officials] have [asked|written] for [logs|a report] within {n} [days|weeks] and [can|may] [fine|order changes].
- [Customers|Users] will [get|receive] [letters|messages] and [free|a year of] [monitoring|advice], [though|but] [hotlines|call centres] were [jammed|slow].
# quote
- “We [are|feel] [sorry|ashamed] and [have shut|we closed] the [door|gap],” said {ceo}, who leads {company.s}.
- “[It|This] was not [clever|magic]. It was [a Tuesday|an open window],” said {analyst2} of {org}.
# recall
- A breach made public on {date} [had exposed|touched] {accounts} accounts at {company}.
- {company} [had disclosed|disclosed] on {date} a breach of {accounts} accounts.
"""
