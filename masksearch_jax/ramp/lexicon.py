"""Word lists of English for span rules: what opens sentences, names countries, people, kinds."""

from __future__ import annotations

import re

MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
DAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"

_ORDINARY = """
a about above according across after again against all along already also although always among an
and another any apart are as asked at away back based because become been before beginning behind
being below beneath besides between beyond books born both but by called can century challenges
children city come could critics currently despite did do does down due during each early either
element even eventually every except farmers few finally first five following for former formerly
found founded four from further general generally given had half has have having he hence her here
his how however hundreds i if in including indeed initially instead into is it its itself just
known large last late later latter led legally less letters like likely likewise little local long
made many meanwhile measured members men modern moreover most much my named near nearly neither
never nevertheless new next nine no nobody none nonetheless nor not nothing now number of often oil
old on once one only or originally other others otherwise our out outside over overall part people
perhaps players poems previously prior printed rather recent recently reportedly researchers rivals
scientists second see seven several she should similarly since six small so some someone something
sometimes soon still students such symbol ten that the their them then there therefore these they
third this those though thousands three through throughout thus to today together total
traditionally twelve twenty twice two typically ultimately under unfortunately unlike until up upon
us using usually various very visitors voters was water we well were what when where whereas
whether which while who whom whose why widely will with within without women work workers would
written year years yet you young your
"""
ORDINARY = frozenset(_ORDINARY.split())

TRIVIAL = frozenset(
    f"{MONTHS}|{DAYS}|I|A|OK|TV|UK|US|USA|AD|BC|Mr|Mrs|Ms|Dr|St|Sir|King|Queen|Prince|President|God"
    "|City|River|University|North|South|East|West|Northern|Southern|Eastern|Western|Category|Note"
    "|English|Internet|Lord|Earth|Sun|Moon|Pope|Emperor|General|Saint|Lady|Duke|State|Parliament"
    "|Church|Government|Christmas|Bible|Western|Central|Street|Island|Lake|Mount"
    "|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec|Ltd|Inc|Co|Corp".split("|")
)

_DEMONYM_ENDS = "ese|ish|ean"
_DEMONYMS = """
African American Arab Arabic Argentine Asian Australian Austrian Belgian Brazilian Bulgarian
Byzantine Canadian Catholic Celtic Chilean Christian Croatian Cuban Czech Dutch Egyptian European
Finn French German Greek Hindu Hungarian Indian Indonesian Iranian Iraqi Israeli Italian Jew Latin
Lutheran Mexican Mongol Muslim Norman Norwegian Orthodox Ottoman Persian Prussian Protestant Roman
Romanian Russian Scot Serb Serbian Slavic Soviet Swiss Syrian Thai Tibetan Ukrainian Buddhist
Islamic Republican Democrat Democratic Communist Victorian Anglican Puritan Viking Korean Jewish
"""
_demonyms = "|".join(_DEMONYMS.split())
DEMONYM = re.compile(rf"(?:(?:{_demonyms})s?|[A-Z][a-z]+(?:{_DEMONYM_ENDS}))\Z")

_COUNTRIES = """
Afghanistan|Albania|Algeria|Angola|Argentina|Armenia|Australia|Austria|Azerbaijan|Bangladesh|Belarus
|Belgium|Bolivia|Bosnia|Botswana|Brazil|Bulgaria|Cambodia|Cameroon|Canada|Chile|China|Colombia|Congo
|Croatia|Cuba|Cyprus|Denmark|Ecuador|Egypt|England|Estonia|Ethiopia|Finland|France|Germany|Ghana
|Greece|Guatemala|Haiti|Hungary|Iceland|India|Indonesia|Iran|Iraq|Ireland|Israel|Italy|Jamaica|Japan
|Kazakhstan|Kenya|Kuwait|Laos|Latvia|Lebanon|Libya|Lithuania|Luxembourg|Madagascar|Malaysia|Mali|Malta
|Mexico|Moldova|Mongolia|Morocco|Mozambique|Myanmar|Namibia|Nepal|Nicaragua|Niger|Nigeria|Norway|Oman
|Pakistan|Panama|Paraguay|Peru|Poland|Portugal|Qatar|Romania|Russia|Rwanda|Scotland|Senegal|Serbia
|Singapore|Slovakia|Slovenia|Somalia|Spain|Sudan|Sweden|Switzerland|Syria|Taiwan|Tanzania|Thailand
|Tunisia|Turkey|Uganda|Ukraine|Uruguay|Venezuela|Vietnam|Wales|Yemen|Zambia|Zimbabwe|Britain|Prussia
|Saudi Arabia|South Africa|New Zealand|Sri Lanka|North Korea|South Korea|Costa Rica|El Salvador
|United Kingdom|United States|Soviet Union|Czech Republic|Philippines|Netherlands|Ottoman Empire
|Alabama|Alaska|Arizona|Arkansas|California|Colorado|Connecticut|Delaware|Florida|Hawaii|Idaho
|Illinois|Indiana|Iowa|Kansas|Kentucky|Louisiana|Maine|Maryland|Massachusetts|Michigan|Minnesota
|Mississippi|Missouri|Montana|Nebraska|Nevada|New Hampshire|New Jersey|New Mexico|New York|North
|Carolina|Ohio|Oklahoma|Oregon|Pennsylvania|Rhode Island|Tennessee|Texas|Utah|Vermont|Virginia
|Wisconsin|Wyoming|Ontario|Quebec|London|Paris|Berlin|Vienna|Rome|Madrid|Lisbon|Moscow|Tokyo|Beijing
|Chicago|Boston|Los Angeles|San Francisco|Philadelphia|Milan|Venice|Florence|Naples|Munich|Hamburg
|Amsterdam|Brussels|Geneva|Zurich|Prague|Budapest|Warsaw|Athens|Istanbul|Cairo|Jerusalem|Baghdad
|Tehran|Delhi|Mumbai|Shanghai|Hong Kong|Seoul|Sydney|Melbourne|Toronto|Montreal|Dublin|Edinburgh
|Glasgow|Manchester|Liverpool|Oxford|Cambridge|Stockholm|Copenhagen|Oslo|Helsinki|Africa|America
|Asia|Europe|Gaul|Syria|Manchuria|Siberia|Bavaria|Saxony|Normandy|Sicily|Crete|Java|Sumatra|Tibet
|Great Britain|Northern Ireland|West Germany|East Germany|Middle East|Far East|New England
"""
PLACES = frozenset(_COUNTRIES.replace("\n", "").split("|")) - {"North", "Carolina"}

_GIVEN = """
Abraham Adam Adolf Agatha Albert Alan Alexander Alexandre Alexey Alfred Alice Amelia Andrew Andy
Ann Anna Anne Anthony Antonio Arthur August Barack Benjamin Bernard Bill Bob Boris Brian Bruce
Carl Carlos Caroline Catherine Charles Charlie Charlotte Chris Christian Christopher Claude Clyde
Daniel David Dennis Diana Diego Dmitri Donald Dorothy Douglas Edgar Edmund Edward Eleanor
Elizabeth Emily Emma Eric Ernest Ernst Eva Ferdinand Francis Francisco Frank Franklin Franz Fred
Frederick Friedrich Fritz Gabriel Gary Geoffrey George Georges Gerald Giovanni Giuseppe Gordon
Grace Graham Gregory Guillaume Gustav Gustave Hans Harold Harry Heinrich Helen Henri Henry Herbert
Herman Hermann Howard Hugh Hugo Humphrey Ian Igor Isaac Ivan Jack Jacob Jacques Jakob James Jane
Jean Jeff Jennifer Jerry Jesse Jim Jimmy Joan Johann Johannes John Jonathan José Josef Joseph Juan
Judith Julia Julius June Karl Kate Katherine Keith Kenneth Kevin Klaus Konrad Larry Laura Lawrence
Leo Leon Leonard Leonardo Lewis Lionel Louis Louise Lucas Ludwig Luigi Luis Margaret Maria Marie
Mario Mark Martin Mary Matthew Maurice Max Maximilien Michael Michel Miguel Mikhail Muhammad Nancy
Napoleon Neil Nicholas Nick Nicolas Nikola Nikolai Norman Oliver Oscar Otto Pablo Patrick Paul
Pedro Peter Philip Philippe Pierre Rachel Ralph Ray Raymond Richard Rick Robert Roger Roland
Ronald Rosa Roy Rudolf Rupert Ryan Sam Samuel Sarah Scott Sergei Sidney Sigmund Simon Sofia Sophia
Stanley Stephen Steve Steven Stuart Susan Terry Theodore Thomas Tim Timothy Tom Tony Victor
Vincent Virginia Vladimir Walter Warren Wilhelm William Winston Wolfgang Woodrow Yuri
"""
GIVEN_NAMES = frozenset(_GIVEN.split())

ORG = re.compile(
    r"\b(?:University|Institut[eo]?|Laborator(?:y|ies)|Labs?|Colleges?|School|Academy|Company|Companies"
    r"|Corporation|Corp|Inc|Ltd|Party|Church|Club|Association|Society|Committee|Council|Ministry"
    r"|Department|Agency|Bank|Union|League|Orchestra|Museum|Gallery|Library|Records|Press|Times|Post"
    r"|Army|Navy|Air Force|Corps|Court|Congress|Senate|Foundation|Group|Centre|Center|Commission"
    r"|Organi[sz]ation|Airlines|Airways|Studios|Pictures|Entertainment|Hospital|Brothers|Motors"
    r"|Systems|Microsystems|Technologies|Industries|Observatory|Exchange|Brigade|Regiment|Division"
    r"|Bureau|Service|Administration|Authority|Compagnie|Men|Boys|United|F\.?C\.?)\b"
)
PLACE = re.compile(
    r"\b(?:River|Lake|Mount|Mountains?|Island|Islands|Isle|Sea|Ocean|Bay|Gulf|Street|Avenue|Road|Lane"
    r"|Square|County|Province|Republic|Kingdom|Valley|Desert|Peninsula|Cape|Park|Bridge|Castle|Palace"
    r"|Cathedral|Abbey|Airport|Station|States|Africa|America|Asia|Europe|Oceania|Hills?|Beach|Harbou?r"
    r"|Springs|Point|Falls|Forest|Prison|House|Hall|Theatre|Hotel|Tower|Stadium|Memorial|Territory"
    r"|District|Creek|Coast|Canyon|Plateau|Strait|Channel|Canal|Port|Fort|Rio|Monte|Hollow|Garden"
    r"|Gardens|City|Town|Township|Village)\b"
)
TERM = re.compile(
    r"\b(?:Prize|Award|Medal|Cup|Bowl|Wars?|Battle|Siege|Treaty|Acts?|Declaration|Convention|Agreement"
    r"|Accords?|Symphony|Revolution|Dynasty|Games|Festival|Derby|Rebellion|Uprising|Conference"
    r"|Project|Plan|Theorem|Law|Effect|Mark|Day|Night|Address|Report|Constitution|Amendment|Crisis"
    r"|Movement|Ages?|Era|Period|Renaissance|Championships?|Series|Open|Grand Prix|Expedition|Test"
    r"|Philosophical|Annals|Journal|Gospel|Book|Code|Bible|HMS|USS|RMS|SS|Operation|Article|Boeing)\b"
)
PEOPLE = (  # what people are called before their names
    "actor|actress|admiral|architect|artist|astronomer|author|bishop|botanist|brother|captain|carpenter"
    "|chemist|composer|conductor|daughter|designer|director|doctor|emperor|empress|engineer|explorer"
    "|father|friend|general|governor|historian|husband|inventor|journalist|king|lawyer|leader|major"
    "|mathematician|mechanic|merchant|minister|mother|muralist|navigator|novelist|officer|painter"
    "|pharmacist|philosopher|photographer|physicist|pilot|playwright|poet|politician|pope|president"
    "|prince|princess|producer|professor|queen|ruler|scientist|sculptor|singer|sister|son|student"
    "|sultan|surveyor|teacher|trumpeter|uncle|wife|writer|successor|predecessor|partner|colleague"
    "|rival|secretary|senator|premier|chancellor|guitarist|drummer|actors|brothers|curate|clerk"
)


def is_head(word: str) -> bool:
    """True for a word that says what a name is: University, River, Treaty."""
    return bool(ORG.match(word) or PLACE.match(word) or TERM.match(word))
