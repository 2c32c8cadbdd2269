"""Forms that every desk shares: how things stand, colour by desk, and names of firms quoted in passing."""
# ruff: noqa: E501, SIM905 - a sentence form or a row of words is one line

from __future__ import annotations

from pipeline.newswire.grammar import sections

ORGS_A = "Harbour Beacon Fourpoint Larch Northlight Copperfield Inkwell Plumbline Saltmarsh Windrose Millrace Redstart Oxbow Tallow Juniper Cordwain Whetstone Lodestar".split()
ORGS_B = ("Research", "Partners", "Advisory", "Analytics", "Institute", "Forecasting", "Associates", "Review", "Trust",
          "Observatory")  # fmt: skip
FIRMS = "Abelard Brixby Crane Dorling Eastlake Fennimore Gorse Hartnell Ivory Jessop Kettle Lorimer Mabbott Nightjar Otterly Pym Quince Rudd Sedge Thrale".split()

LINKS = ("Elsewhere,", "In other news,", "Separately,", "Also in the news:", "Away from this story,", "Meanwhile,",
         "On other pages:", "In brief:", "Also of note:", "From other desks:")  # fmt: skip

STATE = sections("""
# ceo
- {s}, with {v} as chief executive, [keeps|kept] [its counsel|out of the argument].
- [Letters|Questions] to {v}, the chief executive of {s}, [went|remained] unanswered.
- {v} is [the |]chief executive of {s}[ and has made few public comments|, and rarely gives interviews|].
- {s} is [run|led] by {v}, its chief executive[, whose office did not answer calls|, who was travelling|].
- The chief executive of {s}, {v}, was [not available|unreachable|due to speak later in the week].
- [For now|At present], {v} [leads|heads|runs] {s} as chief executive.
- [A spokesperson for|Aides to] {v}, chief executive of {s}, [declined to comment|said they would study the matter].
# hq
- [At|In] {v}, where {s} has its headquarters, [lights burned late|the gates were shut|a flag hung limp].
- {s} [keeps|has] its headquarters in {v}, [a short walk from|across the water from] [the market|the courts|the old mint].
- {s} has its headquarters in {v}[, close to the river|, not far from the station|, in a former warehouse|].
- The headquarters of {s} [is|stands] in {v}[, where most of its managers work|, on a street lined with limes|].
- {s}, [which is|] based in {v}, [employs people in several countries|is watched closely by rivals|publishes its accounts every quarter].
- [Executives|Managers] at the headquarters of {s} in {v} [were not available|said little|kept to themselves].
# product
- {s} [brought out|sells] the {v}, the newest of its products, [in three sizes|at home and abroad|through its own shops].
- {s} [is best known for|makes|sells] the {v}, [its newest product|its latest product|the newest of its products].
- The {v} is the [latest|newest] product of {s}[, and its fastest seller|, though sales figures are scarce|].
- [Much|A good part] of the recent [revenue|attention] of {s} [comes from|goes to] the {v}, its newest product.
# staff
- [On|By] the [latest|last] count {s} has {v} employees[, part-timers included|].
- {s} [employs|has] {v} people[, by its own count|, counting apprentices|].
- The [workforce|payroll] of {s} [numbers|stands at] {v} employees[, according to its latest notice|].
- With {v} employees, {s} is [neither the largest nor the smallest|a sizeable employer] [in its field|of its kind].
# owner
- {s} [belongs to|is part of] {v}, its owner.
- {s} is owned by {v}[, which bought all of its shares|].
- The owner of {s} is {v}[, which leaves day-to-day matters to managers|].
- {v} [owns|is the owner of] {s}[ and keeps its name on the door|].
# mayor
- {v}, the mayor of {s}, [cut a ribbon|chaired the council|met tram drivers|read to pupils] [this week|earlier in the week].
- [Asked about it|Between two meetings], the mayor of {s}, {v}, [said nothing|shook hands|pointed to the budget].
- {v} is [the |]mayor of {s}[ and lives near the old market|, and has a small majority on the council|].
- The mayor of {s}, {v}, [attended|stayed away|sent a deputy|asked for patience].
- [In|Over in] {s}, Mayor {v} [has promised better buses|faces a thin budget|opened a library wing this month].
- {s}, where {v} is mayor, [plans|is planning] a [new tram stop|flood wall|covered market].
# population
- {s} [counts|has] {v} [inhabitants|people], [more in term time|some of them by the water|not all of them early risers].
- [Registers|Lists] [show|give] {v} [inhabitants|people] for {s}.
- {s} has [a population of {v}|{v} inhabitants|{v} residents], [by the latest count|according to the register|official figures show].
- [The latest count|The register] [puts|gives] the population of {s} at {v}.
- [Home to|With] {v} people, {s} [has grown in fits and starts|is a town of bridges and brick|lives from trade and schools].
# coach
- {s}, coached by {v}, [train in the morning|have a short bench|practise free kicks].
- {v} is [the |]coach of {s}[ and is known for long training days|, and prefers young players|].
- {s} are coached by {v}[, a stickler for detail|, who rarely smiles on the touchline|].
- The coach of {s}, {v}, [watched from the stand|took notes|had no injuries to report].
# sponsor
- [Shirts|The shirts] of {s} [carry|bear] the name of {v}, the sponsor.
- {v} is the shirt sponsor of {s}[ under a contract of several years|].
- {s} [play|take the field] in shirts [that carry|bearing] the name of {v}, their sponsor.
- The shirt sponsor of {s} is {v}[, which also pays for the youth side|].
# rate
- The Bank of {s} [keeps|has] its key rate at {v}[, and says so at every chance|].
- The key rate of the Bank of {s} [stands at|is] {v}[, and few expect haste|].
- At the Bank of {s}, the key rate is {v}[ for the time being|, a level that exporters dislike|].
- [Borrowing|Lending] in {s} [takes its cue from|follows] the key rate of the Bank of {s}, [now|at present] {v}.
# governor
- {v} is [the |]governor of the Bank of {s}[ and speaks seldom|].
- The Bank of {s} is [headed|led] by Governor {v}[, an economist by training|].
- The governor of the Bank of {s}, {v}, [will testify next month|gave no hint|is on leave].
# finance_minister
- {v} is [the |]finance minister of {s}[ and guards the purse|].
- The finance minister of {s}, {v}, [called for thrift|asked for figures|kept out of the debate].
- In {s}, {v} [serves as|is] finance minister[, a post with few friends|].
# health_minister
- {v} is [the |]health minister of {s}[ and a doctor by training|].
- The health minister of {s}, {v}, [visited two clinics|asked for figures|promised a report].
# transport_minister
- {v} is [the |]transport minister of {s}[ and came by train|].
- The transport minister of {s}, {v}, [asked for timetables|promised a report|kept out of the debate].
# energy_minister
- {v} is [the |]energy minister of {s}[ and favours long contracts|].
- The energy minister of {s}, {v}, [asked for figures|met grid operators|promised a report].
# education_minister
- {v} is [the |]education minister of {s}[ and a former teacher|].
- The education minister of {s}, {v}, [toured a school|asked for figures|promised a report].
# director
- {v}, director of the {s}, [wrote the foreword|opened the lecture hall|is at sea].
- {v} is [the |]director of the {s}[ and still teaches|].
- The {s} is [headed|led] by its director, {v}[, who returned from a field trip|].
- The director of the {s}, {v}, [hailed the staff|asked for better ships and lamps|will speak at a congress].
# site
- The {s}, [at home|based] in {v}, [lends|keeps] [a famous drawer of beetles|its own ferry|a wall of clocks].
- The {s} has its [campus|main building] in {v}[, behind the botanical garden|].
- The {s} [works from|is housed in] {v}[, in a wing added not long ago|].
- [Visitors|School classes] may see the {s} in {v}, where it [has its seat|is based].
# employer
- [Colleagues at|Students of] the {v} [praise|know] the researcher {s}, who works there.
- {s}, a [researcher|scientist], works at the {v}[ on a team of modest size|].
- [Researcher|The researcher] {s} [is on the staff of|is employed by] the {v}[, with a laboratory of its own|].
- The {v} [employs|counts among its staff] {s}[, whose lectures fill quickly|].
# team
- {s} [trains|earns a living] with {v}[ and studies law at night|, close to home|].
- {s} plays for {v}[ and wears a borrowed number|, mostly on the left|].
- {v} [have|field] {s}[ in midfield| in attack| in defence|], [a fixture this season|a favourite of the crowd].
- [Striker|Midfielder|Defender] {s} [is under contract with|plays for] {v}.
""")

_COLOUR = sections("""
# business
- [Canteen|Lift] talk [turned|ran] to [bonuses|car parks|who sits where], [said|as] [a guard|one secretary] [there|put it].
- [Tax|Customs] [advisers|lawyers] at {firm} [see|expect] [busy|long] [weeks|evenings], [and fees to match|with little glory].
- [Banks|Savings banks] [asked|wrote to] [clients|borrowers] for [fresh|newer] [figures|balance sheets], [a routine|a habit] that [nobody loves|keeps printers busy].
- [The price of|Demand for] [pallets|copper wire|cardboard|forklifts] [rose|fell|held], a [gauge|sign] that {org} [watches|trusts].
- [Boardrooms|Managers|Directors] [in the region|across the border|up and down the coast] [compared notes|took calls|read the small print] [late into the evening|before lunch|over weak coffee].
- [Suppliers|Landlords|Caterers] [wondered|asked] [what becomes of|who will look after] [their contracts|the lease|old orders|unpaid bills].
- [Surveys by|Figures from] {org} [show|suggest|leave little doubt] that [confidence|hiring plans|spending plans] among [managers|owners|traders] [edged up|sagged|held] [for the second month|for the third time|again|this season].
- {analyst3} of {org} described the [season|mood|trade] as “[brisk but brittle|all elbows|quiet, then loud|a queue in the rain]”.
- [Lorry|Delivery] drivers [waiting|parked] [by the gate|outside] [talked|grumbled] about [tolls|night rates|the new forms] [and|as well as] [football|the weather|the price of bread].
- [Small firms|Family businesses|Workshops] in the [hinterland|side streets|old quarter] [say|complain] that [credit|paper|space] is [dear|scarce|hard to get], {org} [found|noted].
# markets
- [Lunch|Coffee] [orders|breaks] at {firm} [ran long|were cancelled], [an old|a fair] [gauge|measure] of [nerves|boredom].
- [Insurance|Pension] [money|funds] [moved|went] [into|out of] [long bonds|builders|grain], according to [tallies|counts] by {org}.
- [Auction|Tender] results [drew|met] [thin|solid] demand, [dealers|clerks] at {firm} [noted|said].
- “[Volume|Silence] [lies|talks],” said {analyst3}, [a broker|a clerk] of {n} decades[ at {firm}|].
- [Turnover|Trading] was [thin|brisk|patchy], [dealers|brokers] said, with [most of the volume|the larger orders] [before noon|in the last hour|at the bell].
- [A dealer|A broker|One trader] at {firm} [said|joked] that [screens|phones] were “[as quiet as a chapel|warm to the touch|all one colour]”.
- [Bond|Bill] yields [drifted|slipped|firmed] [a touch|slightly], and [gold|copper|wheat] [gained|lost] [some|a little] ground.
- [Orders from abroad|Foreign money|Pension funds] [kept|left] the [board|market] [steady|guessing], {analyst3} of {org} said.
- [Options|Futures] [pointed|point] to [a calm|an uneven|a slow] [morning|week|session] [ahead|to come], according to {org}.
# politics
- [Cartoonists|Radio hosts] [had|found] [an easy|a hard] [day|week], and [a choir|two clowns] [sang|waited] [on the steps|by the fountain].
- [Petitions|Letters] [arrived|piled up] [by the sack|in {n} boxes], [mostly|chiefly] about [parking|geese|street lamps].
- [Stenographers|Interpreters] [asked|wish] for [shorter|slower] [speeches|sentences], {analyst3} of their [union|guild] said.
- [Lobbyists|Clerks|Ushers] [filled|crossed|hurried through] the [corridors|lobby|stairwell] with [folders|thermos flasks|worried looks].
- A [survey|poll] by {org} [found|showed] that {n20} percent of [voters|those asked] [trust|distrust|have no view of] [the government|local leaders|opinion polls].
- [Pensioners|Students|Farmers] [held up|carried] [placards|banners] [outside|in the rain], [watched|counted] by [a few|two bored] [officers|guards].
- “[Politics|Government] is [arithmetic with hats on|a slow bus|the art of waiting],” said {analyst3}, who [teaches|lectures on] [history|public law] [at night school|in the provinces].
- The [opposition|minority benches] [asked|called] for [an inquiry|more time|a debate], [as they did|as they had done] [last month|in the spring|before the recess].
# sport
- [The brass band|A drummer], [short of|without] [two trumpets|its conductor], [played|struck up] [on|regardless].
- [Programme|Scarf] sellers [sold out|did well], {analyst3}, [one of them|who has a stall], [said|reported].
- [Injury|Fitness] [lists|news] [grew|shrank] by {n} names, [physios|the bench] [said|let it be known].
- [Betting|Office] pools [paid|owed] [little|plenty], [clerks|barkeepers] [said|grumbled].
- [Rain|Sleet|A low sun|A stiff breeze] [made|left] the [pitch|grass] [heavy|slick|tricky], and [ground staff|stewards] [worked|swept] [until kick-off|at half-time].
- [Drums|Songs|Whistles] [rolled|carried] [across|over] the [terraces|old stand], where [season-ticket holders|children] [shared|passed round] [soup|roasted nuts|scarves].
- [A steward|A groundsman|The kit manager], {analyst3}, [has seen|counted] {n20} [seasons|derbies] and [trusts|believes] [nothing|only the weather forecast].
- [Scouts|Agents] from {n} clubs [sat|were seen] in the [main stand|press seats], [notebooks open|collars up].
- [Fans|Supporters] [queued|lined up] for [trams|buses] [long after|well before] the [whistle|gates opened].
# weather
- [Snowdrops|Nettles|Reeds] [stood|bent] [in rows|by the canal], and [children|walkers] [counted|named] [clouds|puddles].
- [Bakers|Roofers|Painters] [start|stop] [earlier|later] [on such days|this time of year], said {analyst3}, [one of them|who has done so for years].
- [A barometer|An old thermometer] in [a shop window|the station hall] [disagreed|stuck], as [ever|it has for {n} years].
- [Farmers|Growers] [checked|covered] [seedlings|vines|hives] while [anglers|cyclists] [ignored|welcomed] the [breeze|grey sky].
- [Road crews|Gritters|Tree wardens] were [on call|sent out] [overnight|before dawn], {analyst3} of the [district|county] office said.
- [The lake ferries|Mountain huts|Garden cafés] [kept|changed] their [hours|timetables], and [school trips|markets] went [ahead|on as planned].
- [Long-range|Seasonal] charts from {org} [hint at|suggest] [a change|drier air|more of the same] [after the weekend|later in the month].
- “[You can smell it|The gulls know first|Watch the smoke],” said {analyst3}, a [lock keeper|beekeeper|postman] [of many years|by trade].
# technology
- [Teachers|Librarians] [asked|wonder] [whether|how] [old machines|last year's models] [can|will] be [kept going|used for lessons].
- [Forums|Mailing lists] [filled|hummed] with [workarounds|screenshots|rumours], [moderators|volunteers] [deleting|pinning] [the best|the worst].
- [Chargers|Adapters] [sold|ran] out at [stalls|kiosks], {analyst3}, a [stallholder|repairer], [said|noticed].
- [Developers|Engineers|Testers] [swapped|posted] [screenshots|bug reports|jokes] [within minutes|through the night], {org} said.
- [Privacy groups|Consumer groups|Schools] [asked|want to know] [how long|where] [records|logs|backups] are [kept|stored].
- {analyst3}, who [repairs|sells] [handsets|printers] [near the station|in a market hall], [saw|reported] [no rush|a small queue|long faces].
- [Downloads|Searches|Orders] [rose|doubled|dipped] [in the first hour|after lunch], according to [counts|estimates] by {org}.
- [Standards|Rules] for [batteries|passwords|repairs] are [due|expected] [next year|after a consultation], [officials|lawyers] said.
# science
- [The kettle|A centrifuge|The old freezer] [failed|hummed] [through it all|at midnight], [as|and] [doctoral students|night guards] [know|tell].
- [Schools|Museums] [asked|wrote] for [casts|posters|a visit], and [got|were promised] [one|some] [by summer|in turn].
- {analyst3}, [an emeritus|a rival] [from abroad|of many years], [sent|mailed] [flowers|corrections|a bottle].
- [Grant|Research] money [remains|is] [tight|scarce], and [laboratories|field stations] [share|borrow] [freezers|boats|microscopes], {org} [noted|reported].
- [Students|Volunteers] [carried|labelled|counted] [samples|jars|cores] [by hand|through the night], {analyst3} recalled.
- [Peer reviewers|Referees|Outside experts] [asked for|requested] [another season|more samples|plainer graphs] before [agreeing|giving their blessing|putting their names to it].
- “[Most days|On a good day] [nothing happens|we are wrong],” said {analyst3}, a [technician|librarian] [there|on the project]. “[Then one day it does|That is the job].”
- A [lecture|public talk] on the [work|subject] is [planned|set] for [the autumn|next term], [with free entry|with few seats left].
# transport
- [Signals|Winches] [froze|jammed] [once|at dawn] and [were|got] [oiled|kicked] [back to life|into order].
- [Ticket|Freight] clerks [counted|blamed] [the holidays|sleet|fewer trucks] for [the queue|the lull].
- [Canal|Coastal] [skippers|crews] [swapped|traded] [cheese|news|rope] [at the lock|on the quay].
- [Pilots|Dockers|Signal staff] [worked|rested] [in shifts|under lamps], and [tugs|engines] [idled|waited] [by the wall|offshore].
- [Freight rates|Fuel prices|Insurance costs] [eased|climbed|barely moved] [this week|over the month], {org} [said|reported].
- [Commuters|Passengers|Hauliers] [grumbled|shrugged] and [took|looked for] [another route|the later boat|seats near the door].
- {analyst3}, who [drives|loads] [a crane|lorries|the night goods train], spoke of “[a long shift|the usual muddle|good money for cold hands]”.
- [Maps|Timetables] [on the wall|at the gate] [are|were] [{n} years old|out of date|being reprinted], [travellers|drivers] noted.
""")
COLOUR = _COLOUR
