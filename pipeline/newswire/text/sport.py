"""Forms of the sport desk: matches, coaches, transfers, shirt sponsors."""
# ruff: noqa: E501 - a sentence form is one line

_MATCH_COMMON = """
# detail
- [The first half|The opening half hour|The first quarter of an hour] [brought|saw] [more fouls than shots|a long stoppage|{n} corners], [before|until] {scorer} [shot|headed|curled one] [against the bar|over the roof of the stand|into the keeper's gloves].
- {scorer} [hit|scored] from [a free kick|close range|the spot|a rebound] after [a lapse|good work] by {scorer2} [on the left|in midfield|near the line].
- [Both|The two] [goalkeepers|full-backs] were [booked|warned] [for time-wasting|after a quarrel in the tunnel], [to whistles|to nobody's surprise].
- [The|A] [video check|review] [took|lasted] {n} minutes, and [the call|the decision] [stood|was turned over] [amid groans|to loud singing].
- [Substitute|Newcomer] {scorer2} [came on|entered] [for the last half hour|after the break] and [won|lost] [most duels|every header|the ball in midfield].
- [In the {league} table|In the standings of the {league}], {home} [have|now have] {homepoints} points and {away} {awaypoints}.
- [Both sides|The teams] [meet|face] [tougher|other] [opponents|rivals] [next|in the coming round], with [the run-in|the fixture list] [offering|granting] [little|no] rest.
# quote
- “We [ran|fought|waited] and [the ball|luck] [came|went] [our way|to the brave],” said {homecoach}, who coaches {home}.
- “[Football|The game] is [unfair|simple] [on some evenings|in the rain],” {awaycoach}, the coach of {away}, [said|shrugged].
- “[I have|My legs have] [seen|known] [better|worse] [pitches|days],” [laughed|said] {scorer}, [ice|a towel] [on one knee|round the neck].
"""

MATCH = (
    """
# head
- {winner} [beat|defeat|see off] {loser} {score}
- {winner} [too good|too quick|too strong] for {loser}: {score}
- {loser} [stumble|fall] {score} [to|against] {winner} in {league}
# lede
- [It ended|The board read] {score} as {winner} [took|won] [all the points|the match] against {loser} on {day}, {date}, in the {league}.
- {winner} [left|walked off] [muddy but happy|with the points] on {day}, {date}, {score} winners over {loser}.
- {winner} [beat|defeated|overcame] {loser} {score} on {day}, {date}, in the {league}, [with {scorer} on target|in a match of few pauses|before a restless crowd].
- {loser} [lost|went down] {score} to {winner} on {day}, {date}, in a {league} match [that {scorer} settled|played in {weather}].
- [A goal|A late goal|A header] by {scorer} [helped|carried] {winner} to a {score} win over {loser} on {day}, {date}.
- [In|Amid] {weather}, {winner} [got the better of|edged|outplayed] {loser} {score} on {day}, {date}.
# body
- The {league} match [between|of] {winner} and {loser} [on|of] {day}, {date}, [finished|ended] {score}[, with the winners named first|].
# recall
- {winner} [beat|had beaten] {loser} {score} on {date}.
- On {date}, {loser} lost {score} to {winner} in the {league}.
- {winner}, who [beat|defeated] {loser} {score} on {date}, [train|travel] [again this week|by coach].
"""
    + _MATCH_COMMON
)

DRAW = (
    """
# head
- {home} and {away} [draw|share points|finish] {score}
- {home} and {away} [cannot be parted|share the points]: {score}
# lede
- {home} and {away} drew {score} on {day}, {date}, in the {league}, [a result|an outcome] that [pleased neither|helps nobody|both can live with].
- {away} [took|earned|left with] a {score} draw [from|at] {home} on {day}, {date}, [thanks to {scorer}|in {weather}].
- [Nobody won|Honours were even] when {home} met {away} on {day}, {date}: the {league} match [ended|finished] {score}.
# body
- The {league} match [between|of] {home} and {away} [on|of] {day}, {date}, [finished|ended] {score}.
# recall
- {home} and {away} drew {score} on {date}.
- On {date}, {away} [held|had held] {home} to a {score} draw.
"""
    + _MATCH_COMMON
)

COACH = """
# head
- {team} [sack|part with|lose] {old.s}, [turn to|hire|bring in] {new.s}
- {new} [named|new|is] coach of {team}
# lede
- {team} [named|hired|presented] {new} as coach on {day}, [replacing|in place of|after parting with] {old}.
- {new} [took charge of|took over as coach of] {team} on {day}, [hours|a day] after {old} [was dismissed|left by mutual consent|cleared the desk].
- {old} is no longer coach of {team}; the [club|{league} side] [turned to|engaged] {new} on {day}.
# body
- [From|As of] {day}, {new} [coaches|is the coach of] {team}, [and {old} is looking for work|with {old} paid until the summer|in succession to {old}].
# detail
- [A dog|A balloon|A paper plane] [stopped|delayed] play [twice|before the break], to the [delight|relief] of [the crowd|tired legs].
- [Corners|Throw-ins] [went|fell] {n} to [two|one], [a count|numbers] that [says|say] [little|much] about [the wind|the balance].
- [Results|A run of poor results|A cup exit] [had cost|cost] the [former coach|predecessor] [support|the dressing room], [insiders|two players] [said|hinted].
- The [contract|deal] [runs|is] for {n} [seasons|years] and [holds|contains] [a clause|a bonus] for [promotion|a cup final|a top-half finish].
- [Training|The first session] [began|started] [at dawn|behind closed gates] with [sprints|a lecture|a long silence] and [two balls|no balls].
# quote
- “[I promise|We promise] [sweat|sore legs] and, [if we are lucky|now and then], [goals|joy],” {new.s} said.
- “[I leave|One leaves] with [my head up|{n} points more than at first]”, [said|wrote] {old.s}.
# recall
- {new} [has coached|has been coach of] {team} since {date}, when {old} left.
- {team} [replaced|dismissed] {old} as coach on {date} and [took|brought in] {new}.
"""

TRANSFER = """
# head
- {player} [joins|signs for|moves to] {new} [from {old}|for {fee}]
- {new} [land|sign|get] {player.s} [for {fee}|]
- {fee} [move|deal] [takes|sends] {player.s} to {new}
# lede
- {player} [joined|signed for|moved to] {new} from {old} on {day} for a fee of {fee}.
- {new} [signed|bought|secured] {player} from {old} on {day}, [paying|for] {fee}, [the clubs|both clubs] said.
- {old} [sold|let go of] {player} to {new} on {day} [in a deal worth|for] {fee}.
# body
- {player} [now plays|will play] for {new} [after {n} seasons with|after leaving|having left] {old}.
- The fee that {new} paid for {player} [is|was] {fee}[, due in {n} instalments|, before bonuses|].
# detail
- The [medical|health check] [took|lasted] [two days|an afternoon] because of an old [ankle|shoulder|knee] [injury|complaint].
- [The shirt|The number] [waits|hangs] [in the shop|on a hook] [already|since noon], and [fans|children] [queue|ask] for [it|autographs].
- The [midfielder|forward|full-back] [had|has] [a year|{n} months] left on the [former|old] [contract|terms], [agents|advisers] said.
# quote
- “[I followed|One follows] the [ball|heart], and [it|the heart] [rolled|went] [this way|downhill to the sea],” {player.s} [said|joked].
- “[We|The club] [lose|lost] a [friend|left foot],” [said|sighed] {analyst}, who [looks after|keeps] the [kit|grass] at the [former|old] club.
# recall
- {player} [has played|has been] with {new} since a {fee} move from {old} on {date}.
- On {date}, {new} [bought|signed] {player} from {old} for {fee}.
"""

SPONSOR = """
# head
- {new} [to sponsor|on the shirts of|backs] {team}
- {team} [swap|trade] {old.s} for {new.s} on shirts
# lede
- {new} became the shirt sponsor of {team} on {day}, [replacing|in place of] {old}.
- {team} [will wear|wear] the name of {new} on their shirts [from|as of] {day} [and no longer that of|instead of that of] {old}.
- The shirts of {team} [change|changed] on {day}: {new} is the new sponsor, {old} [the former one|goes].
# body
- The shirt sponsor of {team} is {new}, [after|following] {n} [seasons|years] with {old}.
# detail
- The [contract|deal] [lasts|runs] {n} seasons; [sums|terms] were [kept secret|not given].
- [Printers|The club shop] [worked|stayed open] [all night|late] to [change|finish] [the|{hundreds}] [shirts|banners], and [old ones|the rest] [go to|are given to] [youth sides|collectors].
# quote
- “[It is|This is] [about|for] the [youth side|floodlights|town],” [said|claimed] {analyst}, [who sells advertising for the club|a club officer].
# recall
- {team} [have worn|have carried] the name of {new} on their shirts since {date}, when the contract with {old} ended.
"""
