"""Wordings of the scripted teacher's thoughts. Each begins or ends a sentence of its own.

{cue} says where a gap stands ("after 'born in'"), {need} what it asks for ("the birthplace"),
{passage} which passage ("the second passage"), {span} and {answer} what stood there, {query} what
is searched for, {request} what another tool is asked.
"""

from __future__ import annotations

SHORT_FIRST = ("Look up the subject.", "Read about it.")
# With no subject in sight.
SHORT_AROUND = ("Try the words around the gaps.", "Search the context.")
SHORT_AGAIN = ("Not there. Try again.", "Something is missing.", "Search again.")
SHORT_ENDING = ("Found it.", "All is there.", "Now fill in.")
SHORT_START = ("Look up", "Start with")
SHORT_NEXT = ("Next:", "That leads to")
SHORT_FROM_MEMORY = ("From memory.", "I recall it.", "As I know it.")
SHORT_CALL = ("Now work it out.", "Compute.", "Both are known.")

NEEDS = {
    "PERSON": ("a person's name", "the name of a person", "someone's name", "a person"),
    "PLACE": ("a place", "the name of a place", "a location", "a place name"),
    "ORG": ("an organisation", "the name of an organisation", "a body or company", "a group"),
    "DATE": ("a date", "a point in time", "a year or a date", "a time"),
    "NUMBER": ("a number", "a figure", "an amount", "a count or a measure"),
    "TERM": ("a term", "a name", "the name of a thing", "a title or a term"),
}
# What stands shortly before a gap, the type of its span, and what is then asked for.
SPECIAL_NEEDS = (
    (r"\bborn\b", "PLACE", ("the birthplace", "the place of birth", "where the birth was")),
    (r"\bborn\b", "DATE", ("the date of birth", "the birth date", "when the birth was")),
    (r"\b(died|death)\b", "DATE", ("the date of death", "when the death was")),
    (r"\b(died|buried)\b", "PLACE", ("the place of death", "where that was")),
    (r"\b(founded|established|formed|created)\b", "DATE", ("the founding date", "the start date")),
    (r"\b(founded|established) by\b", "PERSON", ("the founder", "the name of the founder")),
    (r"\b(directed) by\b", "PERSON", ("the director", "the name of the director")),
    (r"\b(written|authored) by\b", "PERSON", ("the author", "the name of the author")),
    (r"\b(married|husband|wife)\b", "PERSON", ("the spouse", "the name of the spouse")),
    (r"\b(son|daughter) of\b", "PERSON", ("a parent", "the name of a parent")),
    (r"\b(released|published|premiered)\b", "DATE", ("the release date", "when it came out")),
    (r"\bpopulation\b", "NUMBER", ("the population", "the number of people")),
    (r"\bcapital\b", "PLACE", ("the capital", "the name of the capital")),
    (r"\b(located|situated|lies)\b", "PLACE", ("where it lies", "its location")),
    (
        r"\b(university|college|studied|educated|attended)\b",
        "ORG",
        ("the school", "the university"),
    ),
    (r"\b(won|awarded|received)\b", "TERM", ("the award", "the name of the prize")),
)

GAP = (
    "the [mask] {cue} needs {need}",
    "{need} is missing {cue}",
    "{cue} the text lacks {need}",
    "what stood {cue} is {need}",
    "I need {need} for the gap {cue}",
    "the gap {cue} asks for {need}",
    "{cue} there must be {need}",
    "the blank {cue} should hold {need}",
    "{need} was taken out {cue}",
    "for the [mask] {cue} I want {need}",
    "the paragraph hides {need} {cue}",
    "not known yet {cue}: {need}",
)
PLAN = (
    "I look up {query}",
    "a search for {query} should tell",
    "first I search for {query}",
    "an article on {query} may say it",
    "I start with {query}",
    "it is best to read about {query}",
    "let me see what is known of {query}",
    "what do the passages say of {query}?",
    "{query} is what to search for",
    "reading about {query} should help",
    "I want to find text on {query}",
    "so {query} comes first",
)
PLAN_AROUND = (
    "the subject is not named, so I search for {query}",
    "no name is given; the words around the gaps are {query}",
    "I do not see the subject and try {query}",
    "with no title in sight, {query} must do",
    "the words nearby are {query}: I search for them",
    "what is this about? {query} may lead there",
    "I take what stands near the gaps: {query}",
    "{query} is all there is to go by",
    "perhaps {query} finds the article",
    "the context has {query}, which I search for",
    "I go by the context, {query}",
)
FOUND = (
    "{passage} names {span}",
    "{passage} gives {span} for the gap {cue}",
    "{passage} says {span}",
    "{span} stands in {passage}",
    "by {passage} it is {span} {cue}",
    "{span}, in {passage}, fits {cue}",
    "I read {span} in {passage}",
    "{passage} has {span}, which goes {cue}",
    "{cue} goes {span}, as {passage} says",
    "{passage} fills the gap {cue}: {span}",
    "{passage} mentions {span}",
    "from {passage} I take {span}",
)
NOTHING = (
    "nothing of it is in these passages",
    "these passages do not help",
    "none of this fills a gap",
    "the results are about other things",
    "that search told me nothing of use",
    "no gap is filled by what came back",
    "these texts leave all gaps open",
    "I found none of it there",
    "this is not what I was looking for",
    "what I read does not answer it",
)
STILL = (
    "{need} {cue} is still missing",
    "{cue} I still lack {need}",
    "no passage gives {need} {cue} yet",
    "the gap {cue} stays open",
    "I have not seen {need} {cue}",
    "still unknown {cue}: {need}",
    "nothing shown fits {cue}",
    "{need} has yet to be found {cue}",
    "what goes {cue} is not there",
    "that leaves {need} {cue}",
    "without {need} {cue} it is not whole",
)
RETRY = (
    "I search again, for {query}",
    "other words may do: {query}",
    "now I try {query}",
    "the next search is for {query}",
    "let me add the context: {query}",
    "a wider search, {query}, may show it",
    "I ask for {query} instead",
    "perhaps {query} finds it",
    "I go on with {query}",
    "once more, with {query}",
    "{query} might lead further",
)
DONE = (
    "all gaps are filled",
    "nothing is missing any more",
    "so the paragraph is complete",
    "I can write the paragraph now",
    "with that every [mask] has its words",
    "that is all I need",
    "now the text can be written out",
    "no gap is left",
    "this completes the paragraph",
    "I put the words in their places",
    "the search has given everything",
)
START = (
    "I first need to know about {query}",
    "the question turns on {query}, so I look it up",
    "to answer, I read about {query}",
    "who or what is {query}? I search for it",
    "I begin with {query}",
    "{query} is where to start",
    "the first thing to find out is what is said of {query}",
    "let me look up {query}",
    "a passage on {query} should lead on",
    "I search for {query} first",
    "what is known of {query}?",
)
NEXT = (
    "{passage} leads to {query}",
    "{passage} names {query}, so I look that up",
    "from {passage} I know of {query}; now I read about it",
    "{query} is in {passage}: I search for it",
    "as {passage} says, it is {query}; what is said there?",
    "the next step is {query}, named by {passage}",
    "{passage} tells of {query}, which I need to know more of",
    "with {query} from {passage} I can go on",
    "I found {query} in {passage} and follow it",
    "now to {query}, of which {passage} speaks",
    "{passage} points to {query}",
)
OTHER = (
    "the question also names {query}",
    "I still need {query}",
    "now the other one: {query}",
    "next I look up {query}",
    "that is one part; {query} is the other",
    "I have yet to read about {query}",
    "to go on, I search for {query}",
    "what is left is {query}",
    "it takes {query} too",
    "I also read about {query}",
)
ANSWERED = (
    "{passage} gives the answer: {answer}",
    "{passage} says {answer}",
    "the answer is {answer}, by {passage}",
    "it is {answer}, as {passage} has it",
    "{answer} stands in {passage}, which answers the question",
    "I read {answer} in {passage}",
    "{passage} names {answer}, and that was asked",
    "so it must be {answer}: {passage} says so",
    "from {passage} I know that it is {answer}",
    "{passage} settles it with {answer}",
    "what was asked for is in {passage}: {answer}",
)
DECIDED = (
    "both sides are read, and the answer is {answer}",
    "what I have read decides it: {answer}",
    "comparing the passages, I answer {answer}",
    "so the answer is {answer}",
    "the passages together say {answer}",
    "having read about both, it is {answer}",
    "that settles the question: {answer}",
    "I can compare them now: {answer}",
    "nothing more is needed to say {answer}",
    "the texts show that it is {answer}",
)
DONE_READING = (
    "the answer is {answer}",
    "so it is {answer}",
    "I have read enough: {answer}",
    "that makes it {answer}",
    "it must be {answer}",
    "the passages show {answer}",
    "what was asked for is {answer}",
    "it can be answered now: {answer}",
    "all is read, and it is {answer}",
    "I conclude that it is {answer}",
)
FROM_MEMORY = (
    "I have to go by what I know",
    "there is nothing to read, so I recall",
    "I answer from memory",
    "no passage is at hand, so I remember",
    "what I know has to do",
    "I recall what I can",
    "nothing can be looked up here",
    "without a search I rely on my memory",
    "I write what I remember of it",
    "this must come from what I have learned",
)
CALL = (
    "both figures are known, so I work out {request}",
    "now to compute {request}",
    "what remains is {request}",
    "I have read enough to work out {request}",
    "the passages give all that is needed for {request}",
    "I let the tool work out {request}",
    "from what I read it is {request}",
    "that makes {request}, which I do not guess",
    "{request} will tell",
    "the rest is arithmetic: {request}",
    "to be exact, I ask for {request}",
)
COMPUTED = (
    "that comes to {answer}",
    "the result is {answer}",
    "so the answer is {answer}",
    "it works out as {answer}",
    "by that it is {answer}",
    "this gives {answer}, which was asked for",
    "the tool says {answer}",
    "I take the result: {answer}",
    "{answer} is what it comes to",
    "with that I can answer: {answer}",
)

# Of a statement that was checked, by what came of it.
JUDGED = {
    "true": (
        "the passage says the same",
        "this is what the passage says",
        "the statement agrees with the passage",
        "I read just that in the passage",
        "the passage confirms it",
        "what is stated stands in the passage",
        "passage and statement agree",
        "the passage tells it alike",
        "the value is the one in the passage",
        "that is right by the passage",
    ),
    "false": (
        "the passage says otherwise",
        "the passage gives another value",
        "the statement does not agree with the passage",
        "I read something else in the passage",
        "the passage contradicts it",
        "what stands in the passage is different",
        "passage and statement differ",
        "the passage tells it differently",
        "the value is not the one in the passage",
        "that is wrong by the passage",
    ),
    "not told": (
        "the passage says nothing of this",
        "this is not in the passage",
        "the passage leaves this out",
        "I read nothing about it in the passage",
        "the passage neither confirms nor denies it",
        "no value for this stands in the passage",
        "the passage tells other facts",
        "the passage does not tell it",
        "nothing in the passage decides it",
        "that cannot be told by the passage",
    ),
}
