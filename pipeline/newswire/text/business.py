"""Forms of the business desk: chief executives, headquarters, results, mergers, lawsuits, jobs, rumours."""
# ruff: noqa: E501 - a sentence form is one line

CEO = """
# head
- {company} [names|appoints|picks] {new} [as chief executive|to lead the company|as CEO]
- {new} [replaces|succeeds|takes over from] {old.s} at [the top of |]{company}
- [Change|New face] at the top of {company.s}: {new.s} in, {old.s} out
- {company.s} [board|directors] [turn|turns] to {new.s} [after exit of {old.s}|as {old.s} departs]
# lede
- [One|A single] [sentence|paragraph] [told|informed] staff of {company} on {day} that {new} is the new chief executive and that {old} [has gone|is leaving].
- The top [chair|office] at {company} changed hands on {day}: {new} [sits|moved] [in it|in] as chief executive where {old} [used to|once did].
- {company} [named|appointed|chose] {new} as [its |]chief executive on {day}, [replacing|in place of|succeeding] {old}, [who steps down at once|with immediate effect|in a change that took staff by surprise].
- {new} [took charge|took over|assumed command] of {company} on {day}[, {date},| as chief executive,] after the board [ended the tenure of|parted with|accepted the resignation of] {old}.
- [The board of|Directors at] {company}, the [{country}n |]{trade}, [voted|decided|agreed] on {day} to make {new} chief executive [instead of|in the place of] {old}.
- {old} is out and {new} is in as chief executive of {company}, the {trade} [said|announced|confirmed] on {day}.
- After [weeks|months|a season] of [talk|speculation|whispers] in {town}, {company} [settled|decided] on {new} as its next chief executive, [ending the run of|showing the door to|saying farewell to] {old}.
# body
- {new}, [until now|most recently|previously] the {trade}'s {oldjob}, [is|becomes] chief executive of {company} [from today|at once|with immediate effect].
- As chief executive of {company}, {new} [inherits|will command|takes on] a [staff|workforce|payroll] of [many hands|several sites|some size] and [an order book|a list of promises] left by {old}.
- {old} [had led|had run|was at the helm of] {company} [for {years} years|since the start of an earlier expansion] before {new} [was chosen|was called up|got the nod] on {day}.
- [In a notice to|In a letter to|Telling] [shareholders|investors|suppliers], {company} [wrote|said] that {new} [now holds|had been given] the office of chief executive, [which {old} gave up|vacated by {old}] on {day}.
# detail
- The [appointment|choice|decision] was [unanimous|carried by a single vote|settled after three rounds of interviews], [according to|said] [two people|a person|an adviser] [close to the board|who sat in the room|with knowledge of the talks].
- [Severance terms|The terms of the exit|Details of the leaving package] were not [given|published|disclosed], [though|but] [advisers|lawyers|people close to the talks] [called them modest|said that they followed company rules].
- [Investors|Shareholders|Traders] had [pressed|pushed|asked] for a [clean break|fresh start|change of course] since [a string of delays|a costly recall|the spring meeting|a failed expansion abroad].
- The incoming chief [began|started] [as a trainee|on the night shift|in the audit office|as a field engineer] and [worked|rose] [to the executive floor|to the top table] [by way of|after years in] the post of {oldjob}.
- A [review|plan|timetable] of the [group's|company's] [plants|contracts|spending] is [due|promised|expected] [within {n} weeks|by the end of the quarter|before the next annual meeting].
- [Union leaders|Staff representatives|Shop stewards] [asked for|want|requested] an early [meeting|talk] about [pensions|shift patterns|the future of {n} sites|overtime].
# quote
- “[This|The] company needs [patience|candour|speed] more than [slogans|applause|new logos],” {new.s} [said|told staff|told reporters] [at the {town} office|in a call|after the meeting]. “[We start|Work starts] with the customers.”
- “I [am grateful to|owe a great deal to|thank] {old.s} for [handing over|leaving behind] a [sound|solvent|stubborn] business,” the new chief executive [said|wrote].
- “The [succession|search] [took|lasted] [longer than|twice the time] [anyone planned|we hoped],” [said|admitted] {analyst}, [who chairs the nominations panel|a director since {n} years|the lead outside director].
- “[Outsiders|Markets] will [judge|weigh] {new.s} on [margins|delivery|the first two quarters], not on [charm|speeches],” said {analyst2} of {org}.
# recall
- {new} [has led|has been chief executive of|has run] {company} since {date}, [when|the day] {old} [left|stepped down|departed].
- {company} [replaced|parted with] {old} on {date} [and put|, putting] {new} in charge as chief executive.
- The [last|most recent] change at the top of {company} came on {date}, when {new} [succeeded|followed] {old} as chief executive.
"""

HQ = """
# head
- {company} [moves|shifts|to shift] [head office|headquarters] [from {old} |]to {new}
- {new} [wins|lands|gains] headquarters of {company}
- {company.s} [leaves|quits|packs up in] {old} for {new}
# lede
- [Letterheads|Door signs] [change|changed] at {company} on {day}: the headquarters [is|are] now in {new}, [after|following] [years|decades] in {old}.
- {company} [moved|transferred|shifted] its headquarters from {old} to {new} on {day}, [ending|closing] [a long chapter|decades] in [its old home|the former base].
- {new} is the new [home|seat] of {company}: the {trade} [opened|unlocked|cut the ribbon at] its headquarters there on {day} after leaving {old}.
- The {trade} {company} [said|announced] on {day} that [its head office is|its headquarters are] now in {new} [and no longer in|, no longer in|rather than] {old}.
- [Removal vans|Lorries|Crates and cables] [left|rolled out of] {old} on {day} as {company} [took|carried|brought] its headquarters to {new}.
# body
- [The move makes|With the move] {new} [the|becomes the] headquarters of {company}[ for the first time in its history|, and {old} keeps only a sales office|, while {old} loses its best-known tenant].
- {company}, [founded in {founded}|which dates from {founded}|set up in {founded}], had [kept|run] its headquarters in {old} [until|up to] {day}; [it|the company] is now [run|managed|steered] from {new}.
- [Deeds|Papers|Filings] [lodged|filed] on {day} [list|give|show] {new} as the registered headquarters of {company}, [replacing|in place of] {old}.
# detail
- [Rents|Office rents|Desks and floors] in the new [quarter|district] [cost|come to] [about a third|roughly half|a fraction] of [what the old lease did|the old bill], [according to|said] [letting agents|{firm}|a surveyor].
- [Around|About|Some] {n20} [desks|posts|jobs] will [stay behind|remain] [for now|until the lease ends|under a separate agreement].
- [Local officials|The council|The town hall] [offered|granted] a [tax holiday|rebate|site] [worth little|of modest value|that critics call generous] to [attract|land|secure] the [firm|group].
- [Staff|Employees|Families] were [given|offered] [moving costs|help with schools|a choice between moving and severance] and until [summer|the year's end|next spring] to [decide|answer].
- The [building|tower|site], a former [mill|brewery|printing house|customs shed], was [refitted|rebuilt] by {firm} [over {n} months|at speed|behind schedule].
# quote
- “We [wanted|needed] [light|room|a railway station] and we [wanted|needed] to be [near|close to] our [engineers|customers|drivers],” [said|explained] {ceo}[, the chief executive|, who leads the company].
- “[Every|Each] [box|crate] was [labelled|numbered] and [still|yet] the coffee machine [vanished|went missing],” [joked|said] {analyst}, who [ran|planned] the move.
- “It is a [blow|sad day|loss] for [shopkeepers|the lunch trade|our main street],” said {analyst2}, who [keeps|owns] a [bakery|café|bookshop] [near|opposite] the old office.
# recall
- {company} [has had|has kept] its headquarters in {new} since it [left|moved out of] {old} on {date}.
- [Earlier|Previously], on {date}, {company} [moved|transferred] its headquarters from {old} to {new}.
- The {trade} {company} [swapped|traded] {old} for {new} as the [site|seat] of its headquarters on {date}.
"""

RESULTS = """
# head
- {company} [posts|reports|books] [revenue|sales] of {revenue} for {quarter}
- {company.s} [revenue|sales] {rise} {pct} in {quarter}
- {quarter}: {company.s} [earns|makes] {profit}, revenue {revenue}
# lede
- [Books|Accounts] [opened|released] on {day} show that {company} had revenue of {revenue} in {quarter}, [{rise} {pct} on the year|which is {rise} {pct}].
- {quarter} brought {company} revenue of {revenue}, the {trade} [wrote|told the exchange] on {day}.
- {company} [reported|posted|booked] revenue of {revenue} for {quarter}, [{rise} {pct} from a year earlier|which {rose} {pct} on the year], [the {trade} said|it said in a filing|according to figures released] on {day}.
- [Revenue|Sales revenue|Quarterly revenue] at {company} [came to|reached|totalled] {revenue} in {quarter}, the {trade} [said|disclosed] on {day}, [a figure|a number] that {rose} {pct} [year on year|against the same quarter of the previous year].
- The {trade} {company} [ended|closed] {quarter} with revenue of {revenue} and a [net |]profit of {profit}[, its books show|, it reported on {day}|].
- [Shelves emptied|Orders came in|Customers paid], and {company} [banked|took in] revenue of {revenue} in {quarter}, [its accounts published on {day} show|it told investors on {day}].
# body
- {company} [made|earned|recorded] a [net |]profit of {profit} in {quarter} [after tax|, before one-off items|, after all charges].
- [Net profit|Profit] for {quarter} [was|stood at|came in at] {profit}, {company} said[, helped by {factor}|, held back by {factor2}|].
- [For {quarter}|In {quarter}], {company} [set out|listed] revenue of {revenue} [against|beside] [costs|spending] that [grew faster than planned|barely moved|fell for the third time].
- [Once|After] [interest and tax|all charges] [were paid|had been met], {quarter} left {company} with [a|a net] profit of {profit}.
# detail
- [Hiring|Recruitment] [slowed|went on] in [sales|the workshops], and [overtime|night work] [fell|rose], [payroll tables|an annex] [show|shows].
- [One|A single] [customer|contract] [accounts|stood] for [much|a fair share] of the [growth|swing], [something|a dependence] that {org} [listed|named] among [the risks|its worries].
- [The tax|The pension] [charge|bill] was [higher|lower] than [in the past|last time], [owing to|because of] [a ruling|an old dispute|a change of method].
- [Margins|Operating margins] [narrowed|widened|held] as [wages|freight rates|energy bills|paper prices] [rose|eased|fell back], [the finance office|its accounts] [noted|showed].
- [Analysts|Brokers] [surveyed|polled] by {org} had [expected|pencilled in|looked for] [a little less|slightly more|about the same].
- The [dividend|payout] [stays|remains] [unchanged|where it was], and the [board|company] [kept|repeated|left alone] its [outlook|guidance|forecast] for the year.
- [Sales abroad|Foreign orders|Exports] made up [about a third|close to half|a small part] of the [total|whole], [helped|hurt] by {factor}.
- [Debt|Borrowing] [fell|rose|held steady], and the [order book|backlog] [covers|stretches to] {n} months of work, [according to|said] [the notes to the accounts|the finance chief].
- [Inventories|Stocks] [swelled|shrank] [because of|thanks to] {factor2}, a [point|matter] that [lenders|creditors] had [raised|flagged] [before|in the autumn].
# quote
- “[The|This] quarter was [hard work|better than the last|a grind], and [the next one|what follows] will [not be easier|ask the same of us],” said {ceo}, the chief executive.
- “They [beat|missed] [nobody's|my own] [hopes|numbers] by much,” [said|wrote] {analyst}, who follows the [sector|shares] for {org}. “[Cash|Cash flow] is the [story|thing to watch].”
- “We [sold more of|sell] what we [make well|are good at] and [stopped|dropped] the rest,” {ceo.s} [told|said to] [analysts|investors] [on a call|in {town}].
# recall
- {company} [had reported|reported|announced] revenue of {revenue} for {quarter} [in figures published |]on {date}.
- In {quarter}, {company} [made|earned] a profit of {profit} on revenue of {revenue}, according to [accounts|results] [published|released] on {date}.
- {company}'s [last published|previous] accounts, of {date}, [put|gave] revenue at {revenue} for {quarter}.
"""

MERGER = """
# head
- {company} [buys|to buy|swallows] {target} for {price}
- {target} [sold|goes] to {company} [in {price} deal|for {price}]
- [Deal|Takeover]: {company.s} [takes|acquires] {target.s}
# lede
- [Ink dried|Pens came out] on {day}: {company} is the [new|] owner of {target}, [bought|acquired] for {price}.
- {company} [has a new subsidiary|gained a subsidiary] on {day} in {target}, [for which it|and] paid {price}.
- {company} [bought|acquired|took over] {target} for {price} on {day}, [joining|bringing together] [two of the better-known names|a {trade} and a {targettrade}|rivals and neighbours] in [one group|a single company].
- {target} [now belongs to|became part of|passed to] {company} on {day} after [shareholders|owners|investors] [accepted|took] an offer of {price}.
- [In a deal|In an agreement] worth {price}, {company} [completed|sealed|closed] the purchase of {target}, a {targettrade}, on {day}.
- The {trade} {company} [paid|handed over] {price} [to take control of|for the whole of] {target}, [both|the two] companies said on {day}.
# body
- The [price|sum] of {price} that {company} paid for {target} [includes|leaves out] [debt|its pension fund|{n} warehouses], [advisers|bankers] said.
- {target} [will keep its name|keeps its brand|goes on trading] [but|while] {company} [owns|holds] [all of its shares|every share] [as of {day}|from now on].
- [With {target} in the fold|Now that it owns {target}], {company} [gains|picks up] [{n} plants|a foothold|a sales force] [abroad|in a market it had only eyed|for which it paid {price}].
# detail
- [Regulators|Competition officials|The competition office] had [waved the deal through|cleared it|asked for no remedies] [after {n} weeks|in the first phase|without hearings].
- [Banks|Lenders] led by {firm} [provided|arranged] [bridge loans|the financing|a credit line], [repayable|due] in {n} years.
- [Rival bidders|A second bidder|Two funds] [dropped out|walked away|lost interest] [last month|early|when the books were opened].
- [Savings|Cost cuts] of [several|a few] [points of sales|pennies in each coin of cost] are [promised|planned], [mostly|largely] in [purchasing|back offices|freight].
# quote
- “It [fits|suits us] like a [drawer|key|second glove],” [said|quipped] {ceo}, chief executive of {company}, “and the [people|engineers] [stay|come with it].”
- “[They|The buyers] [paid|gave] a [full|fair|steep] price for a [good|tidy|worn] [franchise|factory|name],” said {analyst} of {org}.
- “Nothing [changes|will change] for [customers|clients] [this year|in the short run],” a [message|note] to [buyers|account holders] [read|said].
# recall
- {company} [has owned|has been the owner of] {target} since {date}, when it paid {price}.
- {target} [was bought|was acquired|was taken over] by {company} on {date} for {price}.
- On {date}, {company} [closed|completed] its purchase of {target}, [a deal valued at|at a price of] {price}.
"""

LAWSUIT = """
# head
- {plaintiff} [sues|takes to court] {company} for {amount}
- {company.s} faces a [suit|claim] for {amount} over {matter}
- [Court|Claim]: {plaintiff.s} against {company.s} over {matter}
# lede
- [Lawyers for|Counsel for] {plaintiff} [walked|went] into court in {court} on {day} to [claim|demand] {amount} from {company} over {matter}.
- [The dispute|The quarrel] over {matter} [has reached|reached] a court in {court}: {plaintiff} [wants|seeks] {amount} from {company}, [papers filed|a claim lodged] on {day} [show|shows].
- {plaintiff} [sued|filed suit against|took legal action against] {company} on {day}, [seeking|claiming|demanding] {amount} over {matter}.
- {company} was [sued|taken to court] on {day} by {plaintiff}, which [seeks|wants|is asking for] {amount} [in damages|] [in a dispute over|over] {matter}.
- A [claim|lawsuit] for {amount} [landed on|reached] the desk of a [judge|clerk] in {court} on {day}: {plaintiff} [accuses|blames] {company} [in the matter of|over] {matter}.
# body
- The [suit|case|claim], [lodged|filed] at the commercial court in {court}, [asks|wants] {company} to pay {amount} to {plaintiff}.
- [According to|In] the [papers|pleadings], {plaintiff} [lost|is owed] {amount} because {company} [ignored|misread|broke] an [agreement|understanding] [on|about] {matter}.
- {company} [rejected|denied|disputes] the claim of {amount} by {plaintiff} and [said it would|promised to|will] [fight|defend itself] in {court}.
# detail
- [Boxes|Crates] of [invoices|letters] [stood|were stacked] on [trolleys|the stairs], [labelled|sorted] by [year|colour], a [clerk|court usher] said.
- [Trade|Business] between the two [goes on|has stopped], [according to|said] [a buyer|a former manager], {analyst}.
- [Interest|Costs] would [come|be added] on top, and [each day|every month] of delay [adds|costs] [a little|more than the fees].
- A first hearing is [set|listed|pencilled in] for [next month|the spring term|the autumn term|late in the year], [before|under] Judge {analyst2}.
- [Lawyers|Counsel] from {firm} [act|appear] for the [claimant|plaintiff]; the [other side|defendant] has [yet to name|not named] a [team|firm].
- [Similar|Comparable] [cases|suits] have [ended|closed] in [settlements|quiet deals] [within a year|on the courtroom steps], [legal scholars|court watchers] [say|note].
- [Shares|The stock] [barely moved|slipped|shrugged off the news], [traders|dealers] said.
# quote
- “[The|These] [papers|accusations] are [long on adjectives|thin|without merit],” a [spokesperson|lawyer] for {company.s} [said|replied].
- “We [tried|wrote] for {n} months [to settle|without an answer],” said {analyst}, [counsel|who speaks] for {plaintiff.s}.
# recall
- {plaintiff} [sued|brought suit against] {company} on {date}, [seeking|asking for] {amount} over {matter}.
- {company} [has faced|has been facing] a claim of {amount} by {plaintiff} over {matter} since {date}.
"""

STAFF = """
# head
- {company} {staff_plan} [jobs|posts], [payroll|headcount|workforce] [now|at] {new}
- {company.s} [counts|puts] [its employees|its staff] [at {new}|: {new}] after [review|shake-up]
# lede
- {company} [said|told unions] on {day} that its [workforce|payroll] now [stands at|numbers|counts] {new} [people|employees], [against|compared with|after] {old} before a [round of hiring and firing|reorganisation|review].
- A [reorganisation|shake-up|long review] at {company} [brings|takes] the number of employees to {new} from {old}, the {trade} [announced|said] on {day}.
- The {trade} {company} [now employs|has] {new} people, it [said|disclosed] on {day}, [where it once had|after it had last reported] {old}.
# body
- [Company records|The personnel office|A filing] [put|gave|showed] the [headcount|number of employees] of {company} at {new} on {day}, [previously|earlier|before that] {old}.
- With {new} employees, {company} is [among the larger|one of the better-known] [employers|names] in its [trade|region]; [the old count was|the count used to be] {old}.
# detail
- [Offices|Depots|Workshops] in {n} [towns|districts] are [affected|touched], [chiefly|above all] in [administration|night work|maintenance].
- [Early retirement|Natural turnover|Transfers] will [do|carry] [most|the bulk] of the [work|change], [managers|the company] [promised|said].
- [Unions|Works councils] and [managers|directors] [agreed|signed] a [social plan|truce] that [rules out|bars] [forced exits|further changes] for {n} months.
# quote
- “[Numbers|Figures] on a [sheet|slide] are [people|families] with [rent to pay|school runs],” said {analyst}, [a union official|who represents the workers].
- “We [match|fit] the [crew|team] to the [work|orders],” [said|argued] {ceo}, the chief executive.
# recall
- {company} [has employed|has had] {new} people since [a review|changes] announced on {date}, [compared with|against] {old} before.
- On {date}, {company} [put|gave] its number of employees at {new}.
"""

RUMOUR = """
# head
- {company} [said to|may|weighs whether to] [eye|court|approach] {target}
- [Talk|Whispers] of a {company.s} [bid|move] for {target.s}
# lede
- {company} is in [talks|early talks|negotiations] to [buy|acquire] {target} for [about|some|roughly] {price}, [people familiar with the matter|two bankers|a person close to the talks] said on {day}.
- [Bankers|Advisers] have been [hired|called in] by {company} to [prepare|draft] an offer of {price} for {target}, [according to|said] [people|two people] with knowledge of the [plan|matter] on {day}.
# body
- An offer of {price} by {company} for {target} would [draw|need] a [look|review] from competition officials, [lawyers|advisers] said.
# detail
- [Neither|No] [side|company] [answered|replied to] [calls|requests for comment] [on {day}|outside office hours].
- No [decision|agreement] has been [taken|reached], and the [talks|discussions] could [still fail|come to nothing], the [people|sources] [cautioned|said].
- [Previous|Earlier] [approaches|contacts] [went nowhere|ended without a deal], [bankers|brokers] [recalled|said].
# quote
- “I would [want|need] to see [a signature|paper] before [buying|selling] a single share,” said {analyst} of {org}.
"""
