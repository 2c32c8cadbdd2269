"""Forms of the transport desk: ports, ships, bridges and lines."""
# ruff: noqa: E501 - a sentence form is one line

CLOSURE = """
# head
- [Port of|Harbour at] {townname} [closed|shut] [by|over] {cause}
- {cause} [shuts|stops] port of {townname}
# lede
- [No ship|Nothing] [entered|left] the port of {townname} on {day}, {date}: it was closed because of {cause}.
- The port of {townname} was closed on {day}, {date}, because of {cause}.
- {cause} [shut|forced the closure of] the port of {townname} on {day}, {date}, [for {hours} hours|stranding {n} ships].
- [Ships|Ferries and freighters] [waited|lay at anchor] off {townname} on {day}, {date}, as its port [closed|was closed] because of {cause}.
# body
- The closure of the port of {townname} on {day}, {date}, was [ordered|put down] [because of|to] {cause}.
# detail
- [Lorries|Trucks] [backed up|queued] for {n} kilometres on the [approach|quay] road, and [drivers|hauliers] [slept in their cabs|played cards].
- [Perishables|Fruit and fish] were [sent|turned away] to [other quays|cold stores inland], [brokers|{firm}] said.
- [Insurers|Shippers] [put|reckon] the [cost|delay] at [little|a few days' wages|less than last time] and [asked|ask] [why|whether] [pumps|cranes|spare pilots] were [lacking|late].
- [Pilots|Tug crews] [returned|went back] to [work|their stations] [after {hours} hours|once the harbour office agreed].
# quote
- “[We close|You close] [once|early] or you [pay|count] [twice|hulls],” said {analyst}, the [harbour master|duty officer].
- “[My|The] [crew|cook] has [onions|coffee] for {n} days, [so we wait|no worry],” said {analyst2}, [mate|skipper] of a [coaster|grain ship].
# recall
- The port of {townname} was closed on {date} because of {cause}.
- {townname} had shut its port on {date} [because of|over] {cause}.
"""

CARGO = """
# head
- {ship} [lands|brings|unloads] {tonnes} tonnes of {goods} [at|in] {townname}
- {goods}: {ship} [docks|berths] in {townname}
# lede
- [Tugs|Pilots] [brought in|met] the {ship} [at|off] {townname} on {day}, {date}; it carried {tonnes} tonnes of {goods}.
- {tonnes} tonnes of {goods} [lie|lay] on the quay in {townname} after the {ship} [called|unloaded] on {day}, {date}.
- The {ship} [brought|carried|took] {tonnes} tonnes of {goods} to {townname} on {day}, {date}.
- The {ship} [docked|berthed|made fast] in {townname} on {day}, {date}, with {tonnes} tonnes of {goods} [aboard|in its holds|].
- [Cranes|Dockers] in {townname} [unloaded|lifted] {tonnes} tonnes of {goods} from the {ship} on {day}, {date}.
# body
- The cargo of the {ship} in {townname} on {day}, {date}, was {tonnes} tonnes of {goods}.
# detail
- [A stowaway cat|A carrier pigeon|Two swallows] [came|went] ashore [first|before the crew], [customs|the watch] [noted|wrote].
- [Buyers|Mills] [inland|upriver] had [waited|asked] for [the load|such goods] since [autumn|the strike], and [carts|barges] [stood|were] ready.
- [Draught|Depth] at the [berth|quay] [left|allowed] [a hand|little] to spare, [said|according to] pilot {analyst2}.
- The [voyage|crossing] took {n20} days, [two|{n}] more than [planned|booked], [because of|owing to] [headwinds|a detour|fog|a customs check].
- [Warehouses|Silos] [behind the quay|in the free port] are [filling|half empty], and [rents|storage rates] [rise|fall] [with every hull|by the week].
- [Samples|Probes] [showed|found] [no pests|good quality|some damp], [inspectors|{firm}] said, and [the seals|papers] were [in order|stamped by noon].
- [It|The ship] [sails|leaves] again [within {n} days|at the next spring tide] [in ballast|with timber|with empty boxes].
# quote
- “[She|That ship] [steers|rolls] like a [sofa|barn], but she [arrives|pays],” [said|laughed] {analyst}, [the first mate|a crane driver].
# recall
- On {date}, the {ship} had landed {tonnes} tonnes of {goods} in {townname}.
- The {ship} [brought|had brought] {tonnes} tonnes of {goods} to {townname} on {date}.
"""

OPENING = """
# head
- {bridge} [opens|opened|open at last] in {townname} [at {cost}|]
- {townname} [gets|opens] {bridge} [after {n} years|]
# lede
- [Traffic|Carts and cars] [rolled|moved] over the {bridge} in {townname} for the first time on {day}, {date}; [the works|it] cost {cost}.
- The {bridge} in {townname} opened to traffic on {day}, {date}, at a cost of {cost}.
- {townname} [opened|inaugurated|handed over] the {bridge} on {day}, {date}; [it|the work] cost {cost}.
- [Brass bands|A ribbon|Schoolchildren] [greeted|marked] the opening of the {bridge} in {townname} on {day}, {date}, [a project of|built for] {cost}.
# body
- The {bridge} in {townname} cost {cost}[, more than a first estimate|, within its budget|, a third of it borrowed|].
# detail
- [Builders|Engineers] of {firm} [sank|drove] {n20} [piles|anchors] and [used|poured] [more concrete|less steel] than [planned|in the first drawing].
- [Cyclists|Pedestrians] [get|have] [a lane|a deck] of their own, and [lorries|heavy goods] [must|have to] [keep|use] [the old route|the outer lane].
- [Tolls|Fees] [start|begin] [next year|in {n} months] and [vary|fall] [by hour|at night], the [operator|district] said.
# quote
- “[My|Our] [grandmother|father] [signed|started] the [first|oldest] petition,” said {analyst}, who [crossed|walked across] [first|with a pram].
- “[It|The thing] [hums|sways] a little in [the wind|a gale], [as it should|by design],” said {analyst2}, [an engineer|who drew the cables].
# recall
- The {bridge} in {townname} opened on {date} at a cost of {cost}.
- {townname} [opened|had opened] the {bridge} on {date}; it cost {cost}.
"""
