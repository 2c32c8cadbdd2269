"""Forms of articles that report no event: columns, market colour, letters. They tell no fact that is asked."""
# ruff: noqa: E501 - a sentence form is one line

NOISE = """
# head
- [Opinion|Column|Essay]: [In praise of|Against|The trouble with|What we owe to] {theme}
- [Letters|From our readers]: {theme} and [other worries|other pleasures]
- [Notebook|Diary|The week in small things]: {theme}
- [Is|Are] we [ready|too late|the right people] for {theme}?
# lede
- [There is|One finds] [a kind of|a] [quiet|courage|comedy] in {theme} that [newspapers|columnists] [seldom|rarely] [notice|print].
- [My|A] [neighbour|colleague|cousin] in {townname}, {analyst}, [swears by|complains of] {theme} and [may|might] be [right|onto something].
- [Every|Each] [season|decade] [finds|invents] its own [quarrel|song] about {theme}, and {townname} is [no exception|where I heard the latest].
- [Ask|Stop] [ten people|anyone] [on the quay|in the market] in {townname} about {theme} and [brace|prepare] for [eleven answers|a long afternoon].
# body
- [This|It] is not a question of [money|taste] alone.
# detail
- [Consider|Take] the [case|example] of {analyst2}, who [gave up|took up] {theme2} [at forty|after a long illness|for a bet] and now [teaches|sells|defends] it [on Sundays|to strangers|by post].
- [Economists|Sociologists|Grandmothers] at {org} [would|will] [tell|assure] you that {theme2} [pays for itself|costs us dearly|cannot be measured], [but|yet] [few|none] of them [tried|asked].
- [The|A] [ledger|guest book|photograph] in [the town archive|a drawer at home] [shows|suggests] that {theme} [was no different|looked much the same] [in our parents' day|{n} generations ago].
- [Cynics|Clever people] [say|reply] that [nothing|little] [changes|comes of it]; [I keep|keep] a [list|jar] of [counterexamples|small proofs], and it is [full|heavy].
- [On the train|At the barber's|Between two showers], [a woman|a boy|an old man] [explained|sang|muttered] [something|a verse] about {theme2} that [I wrote down|has stayed with me|spoiled my argument].
- [None of this|Nothing here] [excuses|explains] the [queue|noise|silence] at [the counter|the ministry door|our bridges], [which is|and that is] where [policy|patience] [begins|ends].
- [Readers|Correspondents] [from the islands|in the hills|near the border] [write|report] that {theme} [arrives|stops] [without warning|on Thursdays|when the wind turns].
- [If|When] [we|they] [must|do] [choose|vote], [let it be|make it] for [fewer|better] [signs|speeches] and [more|longer] [benches|evenings].
- [A reader|A friend], {analyst3}, [asks|wants to know] [who|what] [pays|remains] when {theme} [goes|fails]; [the honest answer is|truth be told,] [we do|nobody knows|the children].
- [It rained|The lamps came on|A dog slept] as I [wrote|finished] this, which [proves nothing|seemed fair|is also {theme2}].
# quote
- “[People|Folk] [think|say] it is [about|all] {theme2},” [said|sighed] {analyst2}, “[but|and] it is [mostly|really] [waiting|sweeping|sums].”
- “[Give|Lend] me [a chair|an hour|a thermos] and I will [show|tell] you {theme},” [laughed|said] {analyst}, [a retired clerk|who runs a kiosk|a piano tuner].
- “[We|They] [tried|banned|praised] it [once|for a summer],” {analyst3} [recalled|wrote]. “[It came back|Nobody noticed|The birds left].”
"""
THEMES = (
    "early trains", "handwritten invoices", "the long lunch", "public benches", "borrowed ladders", "night markets",
    "slow elevators", "free concerts", "crowded ferries", "school gardens", "paper maps", "second-hand coats",
    "unread manuals", "cold offices", "street musicians", "village halls", "lost umbrellas", "evening classes",
    "municipal clocks", "bread prices", "quiet carriages", "repair shops", "lighthouse tours", "late buses",
    "small banks", "open windows", "queueing", "allotment keys", "wooden bridges", "spare buttons",
)  # fmt: skip
"""What columns are about."""
