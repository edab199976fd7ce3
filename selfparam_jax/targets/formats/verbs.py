"""English verbs and their forms, as far as rules about questions need them (`statements`)."""

# base, past, past participle
_IRREGULAR = """
be was been; become became become; begin began begun; bind bound bound; bite bit bitten; blow blew blown; break
broke broken; bring brought brought; build built built; burn burned burned; buy bought bought; catch caught caught;
choose chose chosen; come came come; cost cost cost; cut cut cut; dig dug dug; do did done; draw drew drawn; drink
drank drunk; drive drove driven; eat ate eaten; fall fell fallen; feed fed fed; feel felt felt; fight fought fought;
find found found; fly flew flown; forget forgot forgotten; freeze froze frozen; get got got; give gave given; go
went gone; grow grew grown; hang hung hung; have had had; hear heard heard; hide hid hidden; hit hit hit; hold held
held; keep kept kept; know knew known; lay laid laid; lead led led; leave left left; lend lent lent; let let let;
lie lay lain; light lit lit; lose lost lost; make made made; mean meant meant; meet met met; pay paid paid; put put
put; read read read; ride rode ridden; ring rang rung; rise rose risen; run ran run; say said said; see saw seen;
seek sought sought; sell sold sold; send sent sent; set set set; sew sewed sewn; shake shook shaken; shine shone
shone; shoot shot shot; show showed shown; shut shut shut; sing sang sung; sink sank sunk; sit sat sat; sleep slept
slept; speak spoke spoken; spend spent spent; spin spun spun; stand stood stood; steal stole stolen; stick stuck
stuck; strike struck struck; swim swam swum; take took taken; teach taught taught; tell told told; think thought
thought; throw threw thrown; understand understood understood; wake woke woken; wear wore worn; weave wove woven;
win won won; write wrote written
"""
_REGULAR = """
accept accompany add advise agree allow announce appear appoint approve ask assist attack attend award base belong
borrow call capture carry carve celebrate chair change charge clean climb close collect command compete complete
compose connect consist contain continue control cook count cover crack create cross dance date decide declare
decorate defeat deliver depend describe deserve design destroy develop die direct discover discuss display donate
earn educate elect employ end enjoy enter establish exist expand expect explain explore export fail feature fetch
film finance finish fire fix flow form found fund gain gather govern guard guide happen harvest hatch help hire host
house hunt identify import improve include increase inspire install introduce invent invite join jump last launch
learn like list live locate look love maintain manage map mark marry measure mention migrate mine move name need
notice nominate observe occupy occur offer open operate order organise organize own paint pass perform pick place
plan plant play post pour power prefer prepare present preserve prevent print produce promise propose protect prove
provide publish pull purchase push raise reach receive recognise recognize record recover refuse release remain
remember remove rent repair replace report represent require rescue research resign rest restore retire return
reveal rule sail save score seem select serve settle sign smell solve sponsor start state stay stop store study
succeed suffer supply support surround talk taste test thank trade train transport travel turn unite use vote visit
wait walk want wash watch weigh welcome wish work wrap
"""
_DOUBLED = ("stop", "plan", "map", "rob", "travel", "wrap", "prefer", "occur", "control")

_FORMS = {entry.split()[0]: tuple(entry.split()[1:]) for entry in _IRREGULAR.replace("\n", " ").split(";")}


def past(base: str) -> str:
    """The simple past of a base form: "found" -> "founded"."""
    if base in _FORMS:
        return _FORMS[base][0]
    if base.endswith("e"):
        return base + "d"
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ied"
    return base + base[-1] + "ed" if base in _DOUBLED else base + "ed"


def present(base: str) -> str:
    """The third person singular of a base form: "lie" -> "lies"."""
    if base in ("have", "be"):
        return {"have": "has", "be": "is"}[base]
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ies"
    return base + ("es" if base.endswith(("s", "sh", "ch", "x", "z", "o")) else "s")


BASE = frozenset({*_REGULAR.split(), *_FORMS})
PARTICIPLES = frozenset(
    {*map(past, _REGULAR.split()), *(forms[1] for forms in _FORMS.values()), "born"} - {"read", "set"}
)
# Forms that a clause without an auxiliary may have; not those that are more often another word.
FINITE = frozenset(
    {*map(past, BASE - {"be"}), *map(present, BASE - {"be"})} - {"houses", "places", "posts", "states"}
)
FINITE -= frozenset(
    {"uses", "records", "stores", "names", "works", "marks", "ends", "forms", "plans", "lives", "parts"}
)
FINITE |= frozenset({"uses", "works", "lives", "ends", "forms"})
