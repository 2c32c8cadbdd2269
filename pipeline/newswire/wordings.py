"""How questions are put: several wordings a relation, in fixed order, so that some are held out.

`{s}` is the subject; other slots are the fact's parameters. Wordings 0 to 2 are for training, 3 for
validation and 4 for test.
"""
# ruff: noqa: E501 - tables of words, a row a line

from __future__ import annotations

Wordings = tuple[str, str, str, str, str]

STATE: dict[str, Wordings] = {
    "ceo": (
        "Who is the chief executive of {s}?", "Who runs {s} now?", "Name the current CEO of {s}.",
        "Who leads {s} as chief executive at present?", "Which person holds the top job at {s}?",
    ),
    "hq": (
        "Where does {s} have its headquarters?", "In which town is {s} based?", "Name the town of {s}'s head office.",
        "Where is the headquarters of {s} now?", "From which town is {s} managed?",
    ),
    "product": (
        "What is the newest product of {s}?", "Which product did {s} launch last?", "Name the latest product of {s}.",
        "What is {s}'s most recent product called?", "Under what name does {s} sell its newest product?",
    ),
    "staff": (
        "How many people does {s} employ?", "How many employees does {s} have?", "What is the headcount of {s}?",
        "How large is the workforce of {s} now?", "What number of staff does {s} count at present?",
    ),
    "owner": (
        "Which company owns {s}?", "Who is the owner of {s}?", "To which company does {s} belong?",
        "Name the company that owns {s}.", "Who holds all the shares of {s}?",
    ),
    "mayor": (
        "Who is the mayor of {s}?", "Who governs the town hall of {s}?", "Name the current mayor of {s}.",
        "Who is {s}'s mayor now?", "Which politician is mayor in {s} at present?",
    ),
    "population": (
        "What is the population of {s}?", "How many people live in {s}?", "How many inhabitants has {s}?",
        "What is the latest population figure for {s}?", "How large is {s} by number of residents?",
    ),
    "coach": (
        "Who coaches {s}?", "Who is the coach of {s}?", "Name the current coach of {s}.",
        "Who trains {s} now?", "Which coach is in charge of {s}?",
    ),
    "sponsor": (
        "Which company is the shirt sponsor of {s}?", "Who sponsors the shirts of {s}?",
        "Name the shirt sponsor of {s}.", "Whose name do {s} carry on their shirts?", "Which firm sponsors {s}?",
    ),
    "rate": (
        "What is the key rate of the Bank of {s}?", "At what level is the Bank of {s}'s key rate?",
        "How high is the key interest rate in {s}?", "What does the Bank of {s}'s key rate stand at now?",
        "Which level has the central bank of {s} set its key rate to?",
    ),
    "governor": (
        "Who is the governor of the Bank of {s}?", "Who heads the Bank of {s}?",
        "Name the governor of the central bank of {s}.", "Who is in charge of the Bank of {s} now?",
        "Which economist governs the Bank of {s}?",
    ),
    "director": (
        "Who is the director of the {s}?", "Who heads the {s}?", "Name the current director of the {s}.",
        "Who is in charge of the {s} now?", "Which person directs the {s}?",
    ),
    "site": (
        "In which town is the {s}?", "Where is the {s} housed?", "Name the town where the {s} works.",
        "Where does the {s} have its main building?", "Which town is home to the {s}?",
    ),
    "employer": (
        "At which institute does the scientist {s} work?", "Who employs the researcher {s}?",
        "Name the institute where {s} works.", "Which institute is {s} on the staff of?",
        "Where is the researcher {s} employed now?",
    ),
    "team": (
        "Which team does {s} play for?", "For whom does the player {s} play?", "Name the club of the player {s}.",
        "Which club is {s} under contract with now?", "In whose shirt does {s} play at present?",
    ),
    **{
        f"{p}_minister": (
            f"Who is the {p} minister of {{s}}?", f"Who serves as {p} minister in {{s}}?",
            f"Name the current {p} minister of {{s}}.", f"Who holds the {p} ministry of {{s}} now?",
            f"Which politician is {{s}}'s {p} minister?",
        )
        for p in ("finance", "health", "transport", "energy", "education")
    },
}  # fmt: skip

AS_OF: dict[str, Wordings] = {
    "ceo": (
        "Who was the chief executive of {s} on {on}?", "Who ran {s} on {on}?", "Name the CEO of {s} as of {on}.",
        "As of {on}, who led {s}?", "Which person held the top job at {s} on {on}?",
    ),
    "hq": (
        "Where did {s} have its headquarters on {on}?", "In which town was {s} based on {on}?",
        "Name the town of {s}'s head office as of {on}.", "As of {on}, where was {s}'s headquarters?",
        "From which town was {s} managed on {on}?",
    ),
    "staff": (
        "How many people did {s} employ on {on}?", "How many employees did {s} have as of {on}?",
        "What was the headcount of {s} on {on}?", "As of {on}, how large was the workforce of {s}?",
        "What number of staff did {s} count on {on}?",
    ),
    "product": (
        "What was the newest product of {s} on {on}?", "As of {on}, which product had {s} launched last?",
        "Name the latest product of {s} on {on}.", "What was {s}'s most recent product called on {on}?",
        "On {on}, under what name did {s} sell its newest product?",
    ),
    "mayor": (
        "Who was the mayor of {s} on {on}?", "Who governed the town hall of {s} on {on}?",
        "Name the mayor of {s} as of {on}.", "As of {on}, who was {s}'s mayor?",
        "Which politician was mayor in {s} on {on}?",
    ),
    "population": (
        "What was the population of {s} given as on {on}?", "As of {on}, how many people lived in {s}?",
        "How many inhabitants had {s} by the count in force on {on}?", "Which population figure held for {s} on {on}?",
        "By number of residents, how large was {s} on {on}?",
    ),
    "coach": (
        "Who coached {s} on {on}?", "Who was the coach of {s} on {on}?", "Name the coach of {s} as of {on}.",
        "As of {on}, who trained {s}?", "Which coach was in charge of {s} on {on}?",
    ),
    "sponsor": (
        "Which company was the shirt sponsor of {s} on {on}?", "Who sponsored the shirts of {s} on {on}?",
        "Name the shirt sponsor of {s} as of {on}.", "As of {on}, whose name did {s} carry on their shirts?",
        "Which firm sponsored {s} on {on}?",
    ),
    "rate": (
        "What was the key rate of the Bank of {s} on {on}?", "At what level was the Bank of {s}'s key rate on {on}?",
        "How high was the key interest rate in {s} on {on}?", "As of {on}, what was the Bank of {s}'s key rate?",
        "Which level did the key rate of the central bank of {s} have on {on}?",
    ),
    "director": (
        "Who was the director of the {s} on {on}?", "Who headed the {s} on {on}?",
        "Name the director of the {s} as of {on}.", "As of {on}, who was in charge of the {s}?",
        "Which person directed the {s} on {on}?",
    ),
    "employer": (
        "At which institute did the scientist {s} work on {on}?", "Who employed the researcher {s} on {on}?",
        "Name the institute where {s} worked as of {on}.", "As of {on}, which institute was {s} on the staff of?",
        "Where was the researcher {s} employed on {on}?",
    ),
    "team": (
        "Which team did {s} play for on {on}?", "For whom did the player {s} play on {on}?",
        "Name the club of the player {s} as of {on}.", "As of {on}, which club was {s} under contract with?",
        "In whose shirt did {s} play on {on}?",
    ),
    **{
        f"{p}_minister": (
            f"Who was the {p} minister of {{s}} on {{on}}?", f"Who served as {p} minister in {{s}} on {{on}}?",
            f"Name the {p} minister of {{s}} as of {{on}}.", f"As of {{on}}, who held the {p} ministry of {{s}}?",
            f"Which politician was {{s}}'s {p} minister on {{on}}?",
        )
        for p in ("finance", "health", "transport", "energy", "education")
    },
    "governor": (
        "Who was the governor of the Bank of {s} on {on}?", "Who headed the Bank of {s} on {on}?",
        "Name the governor of the Bank of {s} as of {on}.", "As of {on}, who was in charge of the Bank of {s}?",
        "Which economist governed the Bank of {s} on {on}?",
    ),
}  # fmt: skip

CHANGED: dict[str, Wordings] = {
    "ceo": (
        "Who led {s} before {new} became chief executive?", "Whom did {new} replace at the top of {s}?",
        "Who was {new}'s predecessor as chief executive of {s}?", "Who made way for {new} as CEO of {s}?",
        "From whom did {new} take over {s}?",
    ),
    "hq": (
        "Where was {s} based before it moved its headquarters to {new}?", "From which town did {s} move to {new}?",
        "Which town did {s} leave for {new}?", "What was the seat of {s} before {new}?",
        "Which town lost the headquarters of {s} to {new}?",
    ),
    "staff": (
        "How many employees did {s} have before the change announced on {date}?",
        "From what number did the staff of {s} change on {date}?", "What was the headcount of {s} before {date}?",
        "Which number of employees did {s} report before it gave {new}?",
        "How large was the workforce of {s} before it became {new}?",
    ),
    "product": (
        "Which product of {s} did the {new} replace as the newest?", "What was {s}'s newest product before the {new}?",
        "Which product came before the {new} at {s}?", "What did {s} sell as its newest product until the {new}?",
        "The {new} follows which product of {s}?",
    ),
    "mayor": (
        "Who was mayor of {s} before {new}?", "Whom did {new} replace as mayor of {s}?",
        "Who lost the mayor's office of {s} to {new}?", "Who was {new}'s predecessor in the town hall of {s}?",
        "From whom did {new} take over as mayor of {s}?",
    ),
    "population": (
        "What was the population of {s} before the count of {date}?",
        "Which population figure of {s} was replaced on {date}?", "What did the earlier count of {s} give, before {new}?",
        "How many inhabitants had {s} until the count of {date}?", "From what figure did the population of {s} change to {new}?",
    ),
    "coach": (
        "Who coached {s} before {new}?", "Whom did {new} replace as coach of {s}?",
        "Who was {new}'s predecessor as coach of {s}?", "Who made way for {new} at {s}?",
        "From whom did {new} take over as coach of {s}?",
    ),
    "sponsor": (
        "Which company sponsored {s} before {new}?", "Whom did {new} replace as shirt sponsor of {s}?",
        "Whose name did {s} wear before that of {new}?", "Which sponsor of {s} gave way to {new}?",
        "From which sponsor did {s} change to {new}?",
    ),
    "rate": (
        "What was the key rate of the Bank of {s} before the decision of {date}?",
        "From what level did the Bank of {s} move its key rate on {date}?",
        "Which key rate did the Bank of {s} have until {date}?", "What was the Bank of {s}'s key rate before it became {new}?",
        "At what level was the key rate in {s} until the change of {date}?",
    ),
    "director": (
        "Who headed the {s} before {new}?", "Whom did {new} replace as director of the {s}?",
        "Who was {new}'s predecessor at the {s}?", "Who made way for {new} as director of the {s}?",
        "From whom did {new} take over the {s}?",
    ),
    "employer": (
        "Where did the scientist {s} work before joining the {new}?", "Which institute did {s} leave for the {new}?",
        "Which institute lost the researcher {s} to the {new}?", "What was the former institute of {s}, now at the {new}?",
        "From which institute did {s} move to the {new}?",
    ),
    "team": (
        "Which team did {s} play for before joining {new}?", "From which club did {s} move to {new}?",
        "Which club sold {s} to {new}?", "What was the former club of {s}, now at {new}?",
        "Which team did {s} leave for {new}?",
    ),
    **{
        f"{p}_minister": (
            f"Who was {p} minister of {{s}} before {{new}}?", f"Whom did {{new}} replace as {p} minister of {{s}}?",
            f"Who was {{new}}'s predecessor as {p} minister of {{s}}?",
            f"Who left the {p} ministry of {{s}} when {{new}} came?",
            f"From whom did {{new}} take over as {p} minister of {{s}}?",
        )
        for p in ("finance", "health", "transport", "energy", "education")
    },
    "governor": (
        "Who was governor of the Bank of {s} before {new}?", "Whom did {new} replace as governor of the Bank of {s}?",
        "Who was {new}'s predecessor at the Bank of {s}?", "Who made way for {new} at the Bank of {s}?",
        "From whom did {new} take over the Bank of {s}?",
    ),
}  # fmt: skip

DATED: dict[str, Wordings] = {
    "revenue": (
        "What revenue did {s} report for {quarter}?", "How much revenue did {s} have in {quarter}?",
        "How high was the revenue of {s} in {quarter}?", "For {quarter}, which revenue did {s} book?",
        "What did {s} take in during {quarter}?",
    ),
    "profit": (
        "What profit did {s} make in {quarter}?", "How much did {s} earn in {quarter}?",
        "How high was the profit of {s} in {quarter}?", "For {quarter}, which profit did {s} record?",
        "What was left for {s} as profit in {quarter}?",
    ),
    "deal_price": (
        "How much did {buyer} pay for {s}?", "For what price did {buyer} buy {s}?",
        "What was the price of {buyer}'s purchase of {s}?", "At what price did {s} pass to {buyer}?",
        "What sum did {buyer} spend on {s}?",
    ),
    "claim": (
        "How much does {plaintiff} claim from {s} in the suit of {date}?",
        "What sum did {plaintiff} seek when it sued {s} on {date}?",
        "How high is the claim that {plaintiff} filed against {s} on {date}?",
        "In the suit of {date}, how much does {plaintiff} want from {s}?",
        "For what amount did {plaintiff} take {s} to court on {date}?",
    ),
    "suit": (
        "Over what did {plaintiff} sue {s} on {date}?", "What is the matter of {plaintiff}'s suit of {date} against {s}?",
        "Why did {plaintiff} take {s} to court on {date}?", "What is the dispute of {date} between {plaintiff} and {s} about?",
        "What does {plaintiff} accuse {s} over in its suit of {date}?",
    ),
    "votes": (
        "How many votes did {winner} win when elected mayor of {s}?", "With how many votes did {winner} become mayor of {s}?",
        "What was {winner}'s number of votes in {s}?", "How many people in {s} voted for {winner}?",
        "How many ballots in {s} went to {winner}?",
    ),
    "tally": (
        "By what vote did the {s} pass the {act}?", "What was the vote on the {act} in the {s}?",
        "How did the {s} divide over the {act}?", "With which result did the {s} vote on the {act}?",
        "What was the tally when the {act} went through the {s}?",
    ),
    "passed": (
        "On which day did the {s} pass the {act}?", "When did the {s} adopt the {act}?",
        "What was the date of the {s}'s vote on the {act}?", "On what date was the {act} approved by the {s}?",
        "Which day saw the {act} through the {s}?",
    ),
    "close": (
        "At what price did shares in {s} close on {date}?", "What was the closing share price of {s} on {date}?",
        "How much was a share of {s} worth at the close of {date}?", "On {date}, at what price did the stock of {s} end the day?",
        "What did one share of {s} cost when trading ended on {date}?",
    ),
    "index": (
        "At how many points did the {s} close on {date}?", "What was the closing level of the {s} on {date}?",
        "Where did the {s} end on {date}?", "On {date}, at which level did the {s} finish?",
        "How many points did the {s} stand at when trading ended on {date}?",
    ),
    "score": (
        "What was the score when {s} hosted {away} on {date}?", "How did the match {s} against {away} of {date} end?",
        "What was the result of {s} versus {away} on {date}?", "With what score did {s} and {away} part on {date}?",
        "On {date}, what was the final score between {s} and {away}?",
    ),
    "win": (
        "Whom did {s} beat on {date}?", "Which team lost to {s} on {date}?", "Against whom did {s} win on {date}?",
        "Which side did {s} defeat on {date}?", "Over which opponent did {s} prevail on {date}?",
    ),
    "fee": (
        "What fee did {new} pay for {s} on {date}?", "For how much did {s} move to {new} on {date}?",
        "How much did {s} cost {new} on {date}?", "What was the price of the transfer of {s} to {new} on {date}?",
        "At what fee did {new} sign {s} on {date}?",
    ),
    "high": (
        "What was the high in {s} on {date}?", "How warm did it get in {s} on {date}?",
        "What was the highest temperature in {s} on {date}?", "On {date}, which temperature did {s} reach?",
        "What maximum did the thermometer in {s} show on {date}?",
    ),
    "warning": (
        "Of what was {s} warned by the weather office on {date}?", "What hazard did the warning of {date} for {s} name?",
        "Which danger did the weather warning for {s} on {date} concern?", "On {date}, what was the weather warning for {s} about?",
        "Which hazard led to a weather warning for {s} on {date}?",
    ),
    "launch_price": (
        "What does the {product} by {s} cost?", "At what price did {s} launch the {product}?",
        "How much is the {product} from {s}?", "For what price does {s} sell the {product}?",
        "What price tag did {s} put on the {product}?",
    ),
    "breach": (
        "How many accounts were affected by the breach at {s} made public on {date}?",
        "How many accounts did intruders reach at {s}, as it said on {date}?",
        "What number of accounts did the leak at {s} of {date} touch?",
        "On {date}, how many accounts did {s} say had been copied?",
        "How many accounts at {s} were exposed according to the news of {date}?",
    ),
    "prize": (
        "Who won the {s} of {year}?", "To whom did the {s} of {year} go?", "Who was awarded the {s} of {year}?",
        "Name the winner of the {s} of {year}.", "Which researcher received the {s} of {year}?",
    ),
    "prize_for": (
        "For work on what did {winner} win the {s} of {year}?", "What was the {s} of {year} awarded to {winner} for?",
        "Which subject earned {winner} the {s} of {year}?", "What did {winner}, winner of the {s} of {year}, work on?",
        "What line of research brought {winner} the {s} of {year}?",
    ),
    "depth": (
        "At what depth was the find that the {s} announced on {date}?", "How deep lay what the {s} found, as it said on {date}?",
        "What was the depth of the {s}'s find of {date}?", "On {date}, the {s} announced a find at what depth?",
        "How far down was the discovery that the {s} made public on {date}?",
    ),
    "find": (
        "What did the {s} announce on {date} that it had found?", "What did researchers of the {s} find, as announced on {date}?",
        "What was the find of the {s} of {date}?", "On {date}, what discovery did the {s} make public?",
        "Which discovery did the {s} report on {date}?",
    ),
    "closure": (
        "Why was the port of {s} closed on {date}?", "What closed the port of {s} on {date}?",
        "What was the cause of the closure of {s}'s port on {date}?", "On {date}, what shut the port of {s}?",
        "Because of what did the port of {s} stop work on {date}?",
    ),
    "cargo": (
        "How many tonnes of cargo did the {s} bring to {port} on {date}?",
        "What tonnage did the {s} land in {port} on {date}?", "How many tonnes did the {s} unload in {port} on {date}?",
        "On {date}, how much cargo, in tonnes, did the {s} carry to {port}?",
        "How heavy, in tonnes, was the load of the {s} in {port} on {date}?",
    ),
    "goods": (
        "What goods did the {s} bring to {port} on {date}?", "With what cargo did the {s} dock in {port} on {date}?",
        "What did the {s} unload in {port} on {date}?", "On {date}, what did the {s} carry to {port}?",
        "Which freight came off the {s} in {port} on {date}?",
    ),
    "cost": (
        "How much did the {s} cost?", "What was the cost of the {s}?", "At what cost was the {s} built?",
        "What sum did the building of the {s} take?", "How expensive was the {s}?",
    ),
    "opened_in": (
        "In which town was the {s} opened?", "Where did the {s} open?", "Which town got the {s}?",
        "Name the town of the {s}.", "In what place can one use the {s}?",
    ),
}  # fmt: skip
