"""What templates, tags and links of wikitext show in prose, and that no broken sentence is kept."""

import itertools
import random
import re

import pytest

from masksearch_jax.core.corpus_config import CorpusConfig
from masksearch_jax.corpus import prose, readers, wikitext
from tests.corpus.wiki import HEAD, page

HOLE = prose.HOLE
_SLOT = re.compile("«(.*)»", re.DOTALL)


def render(text):
    return wikitext.render("1", "T", text).paragraphs


# Sentences and what is read in place of what stands between « and »; None: the sentence has a hole.
SENTENCES = [
    # quantities
    ("In its lower course it is «{{convert|7|to|10|km|mi}}» wide.", "7 to 10 km"),
    ("The dam stands «{{convert|6|-|8|m|ft}}» above the meadows.", "6–8 m"),
    ("The dam stands «{{convert|6|–|8|m|ft|abbr=on}}» above the meadows.", "6–8 m"),
    ("The dam stands «{{convert|6-8|m|ft}}» above the meadows.", "6–8 m"),
    ("The two weirs are «{{convert|3|and|5|m|ft|0}}» high.", "3 and 5 m"),
    ("A span of «{{convert|30|or|40|ft|m}}» was asked for.", "30 or 40 ft"),
    ("The lock is «{{convert|60|by|12|m|ft}}» in size.", "60 by 12 m"),
    ("The hall is «{{convert|60|x|12|m|ft}}» in size.", "60 m × 12 m"),
    ("The crate is «{{convert|60|x|12|x|9|cm|in}}» in size.", "60 cm × 12 cm × 9 cm"),
    ("The yield is «{{convert|500|+/-|20|kg|lb}}» a year.", "500 ± 20 kg"),
    ("The yield is «{{convert|500|±|20|kg|lb}}» a year.", "500 ± 20 kg"),
    ("The miller was «{{convert|6|ft|2|in|m|2}}» tall.", "6 ft 2 in"),
    ("The bell weighs «{{convert|11|st|4|lb|kg}}» without its yoke.", "11 st 4 lb"),
    ("The road is «{{convert|5|km|mi}}» long.", "5 km"),
    ("The road is «{{cvt|5|km}}» long.", "5 km"),
    ("The road is «{{convert|5|km|mi|disp=flip}}» long.", "5 km"),
    ("It is a «{{convert|5|km|mi|adj=on}}» walk to the mill.", "5 km"),
    ("The farm has «{{convert|1|acre|ha}}» of vines.", "1 acre"),
    ("The farm has «{{convert|1200|acre|ha}}» of vines.", "1,200 acres"),
    ("The forest covers «{{convert|2.5|e6acre|km2}}» of the land.", "2.5 million acres"),
    ("The lake covers «{{convert|36|km2|sqmi|abbr=off|sp=us}}» in spring.", "36 km²"),
    ("The lake covers «{{convert|12|to|14|sqmi|km2}}» in spring.", "12 to 14 sq mi"),
    ("In winter it is «{{convert|-5|C|F}}» at night.", "−5 °C"),
    ("The plank is «{{convert|1+1/2|in|mm}}» thick.", "1 1/2 in"),
    ("The density is «{{convert|50|/km2|/sqmi}}» on average.", "50/km²"),
    ("The path is «{{Convert | 7 | to | 10 | km <!-- measured --> | mi}}» long.", "7 to 10 km"),
    ("The road is {{convert|5|km|mi|disp=out}} long.", None),
    ("It is a {{convert|5|km|mi|adj=mid|-long}} road to the mill.", None),
    ("The road is {{convert|5|smoots|m}} long.", None),
    ("The road is {{convert|many|km|mi}} long.", None),
    ("The road is {{convert|5}} long.", None),
    ("The road is «{{convert|5|km|and a half|mi|7}}» long.", "5 km"),
    ("The road is {{convert|{{odd}}|km}} long.", None),
    ("Its water has «{{val|3.5|u=g/L}}» of salt at the mouth.", "3.5 g/L"),
    ("Its water has «{{val|35000|u=t}}» of salt at the mouth.", "35,000 t"),
    ("Its water has {{val|3.5|0.2|u=g/L}} of salt at the mouth.", None),
    ("About «{{frac|1|2}}» of its water comes from the lake.", "1/2"),
    ("About «{{frac|2|1|2}}» barrels were drawn from it.", "2 1/2"),
    ("The census counted «{{formatnum:79585}}» people in it.", "79,585"),
    ("The dam cost «{{£|4 million}}» to build.", "£4 million"),
    ("The dam cost «{{US$|5.5 million|long=no}}» to build.", "US$5.5 million"),
    ("The dam cost «{{USD|1,250}}» to build.", "US$1,250"),
    ("The dam cost {{INR|500|1990}} to build.", None),
    ("The dam cost {{Inflation|US|5|1910}} to build.", None),
    ("It is a «{{convert|500|acre|ha|adj=on}}» farm on the left bank.", "500-acre"),
    ("It is a «{{convert|1200|acre|ha|adj=on}}» farm on the bank.", "1,200-acre"),
    ("The road is {{convert|5|km|to|6|km|mi}} long.", None),
    ("The road is {{convert|6|ft|2|in|to|6|ft|4|in|m}} wide.", None),
    ("The road is 5«{{frac|1|2}}» miles long.", " 1/2"),
    ("The road is 5«{{half}}» miles long.", " 1/2"),
    # dates
    ("«{{As of|1773}}», the valley had 900 people in it.", "As of 1773"),
    ("«{{As of|2011|5|12}}», the valley had 900 people in it.", "As of 12 May 2011"),
    ("«{{as of|2011|May|12|df=US}}», the valley had 900 people.", "As of May 12, 2011"),
    ("The school had «{{As of|2011|05|lc=y}}» more than 900 pupils.", "as of May 2011"),
    ("The school had «{{As of|2011|alt=in the year 2011}}» 900 pupils.", "in the year 2011"),
    ("The school had in «{{As of|2011|bare=y}}» more than 900 pupils.", "2011"),
    ("«{{As of|2011|since=y}}», the valley has a school of its own.", "Since 2011"),
    ("{{As of|now}}, the valley has a school of its own.", None),
    ("The first bridge, of «{{circa|1450}}», was made of oak.", "c. 1450"),
    ("The first bridge, of «{{c.|1450|1460}}», was made of oak.", "c. 1450 – c. 1460"),
    ("The mason Ulf («{{fl.|1450|1470}}») was the builder of it.", "fl. 1450 – 1470"),
    ("The mason was {{age|1951|5|4}} at the time of the fire.", None),
    # words
    ("It is called «{{lang-fr|la Aldaelle}}» by the people there.", "la Aldaelle"),
    ("It is called «{{lang|no|Aldaelva}}» by the people there.", "Aldaelva"),
    ("It is called «{{langx|no|Aldaelva|lit=the river}}» by the people.", "Aldaelva"),
    ("It is called «{{lang-sr-Latn|1=Aldava}}» by the people there.", "Aldava"),
    ("It is called «{{transl|ru|Aldava}}» by the people there.", "Aldava"),
    ("It is called «{{nowrap|the old [[river]]}}» by the people.", "the old river"),
    ("It is called «{{nihongo|Alda River|アルダ川}}» by the people.", "Alda River"),
    ("It passes the mill of «{{ill|Ulf Brandt|de|Ulf Brandt (Müller)}}».", "Ulf Brandt"),
    ("It passes the mill of «{{ill|Ulf Brandt|de|lt=U. Brandt}}».", "U. Brandt"),
    ("It passes «{{abbr|St.|Saint}}» Olaf on the left bank.", "St."),
    ("The dam of 1910«{{ndash}}»1914 was built of stone.", "–"),
    ("The delta«{{snd}}a wide marsh{{snd}}»was drained.", " – a wide marsh – "),
    ("The «{{HMS|Lark}}» was laid up in its mouth.", "HMS Lark"),
    ("The «{{ship|SS|Lark|1890}}» was laid up in its mouth.", "SS Lark"),
    ("The «{{ship||Lark}}» was laid up in its mouth.", "Lark"),
    ("A «{{sclass|Lark|tugboat}}» was laid up in its mouth.", "Lark-class tugboat"),
    ("A crew from «{{flag|Sweden}}» repaired the lock.", "Sweden"),
    ("A crew from {{flag|SWE}} repaired the lock.", None),
    ("A crew from «{{flagicon|Sweden}} [[Sweden]]» repaired the lock.", "Sweden"),
    ("The sign reads «{{sic|Rivver}}» to this day.", "Rivver"),
    # raised and lowered
    ("The lake covers 36 km«<sup>2</sup>» in spring.", "²"),
    ("It was the 19«<sup>th</sup>» bridge on the river.", "th"),
    ("It has about 10«<sup>6</sup>» visitors in a year.", "⁶"),
    ("The spring is rich in CO«<sub>2</sub>» all the year.", "₂"),
    ("The lake covers 36 km«{{sup|2}}» in spring.", "²"),
    ("The speed v<sub>max</sub> was measured in 1910.", None),
    ("The law of <math>x^2</math> was found on its banks.", None),
    ("A rule of <s>four</s> boats held on the river.", None),
    ("The mill<sup>a</sup> was built of oak on its banks.", None),
    ("It was the 19«{{sup|th}}» bridge on the river.", "th"),
    ("The ship «''Lark» was laid up in its mouth.", "Lark"),
    ("The ship -{zh-cn:Lark}- was laid up in its mouth.", None),
    # links
    ("A film in the manner of «[[Blue Water: A Tale]]» was made of it.", "Blue Water: A Tale"),
    ("It is the subject of «[[:Category:Rivers|a list]]» of its own.", "a list"),
    ("The word «[[wikt:weir|weir]]» is of an older age.", "weir"),
    ("The river «[[de:Alda]]»is the longest of the land.", ""),
    ("It is described on «[http://x.example a page]» of its own.", "a page"),
    ("It is described in a book «[http://x.example] »of its own.", ""),
    ("It is described on http://x.example in a book.", None),
    ("It flows past [[Corvo|]] in a wide bend.", None),
    # what says nothing, and where that leaves a hole
    ("The river froze in 1880.«{{sfn|Moss|1890}}» The ice held.", ""),
    ("The river froze« {{cn|date=May 2011}}», and the ice held.", ""),
    ("The river«{{efn|Or its upper part.}}» froze in 1880.", ""),
    ("The river froze«<ref>{{cite book|title=Ice}}</ref>» in 1880.", ""),
    ("It froze in 1880«<ref name=a />», and the ice held.", ""),
    ("The river «({{IPAc-en|a|l|d|a}}) »froze in 1880.", ""),
    ("The river («{{lang-de|Alda}} {{IPA-de|alda|}}»; old name) froze.", "Alda"),
    ("The river («{{IPA|alda}}; »born of two brooks) froze.", ""),
    ("The river (pronounced {{IPA|alda}}) froze in 1880.", None),
    ("The river is spoken of as {{IPA|alda}} in the north.", None),
    ("The name sounds like {{audio|Alda.ogg|this}} in the north.", None),
    ("The spring lies at {{coord|51|N|7|E|display=inline}} in a wood.", None),
    ("The spring «({{coord|51|N|7|E}}) »lies in a wood.", ""),
    ("The spring lies «{{coord|51|N|7|E|display=title}}»in a wood.", ""),
    ("As the article {{main|Alda basin}} has it, the basin is wide.", None),
    ("It is, {{see also|Brenn}} as they say, the older of the two.", None),
    ("The weir {{about|the weir}} was built of oak.", None),
    ("He spoke of the {{good|river}} as of a friend.", None),
    ("He spoke of the {{mainland}} as of a friend.", None),
    ("He spoke of the {{notable|river}} as of a friend.", None),
    ("He spoke of the {{aboutness}} as of a friend.", None),
    ("He spoke of the {{forte}} as of a friend.", None),
    ("He spoke of the {{pronghorn}} as of a friend.", None),
    ("He spoke of the {{rate|3}} as of a friend.", None),
    ("He said {{quote|text=the river is ours}} when it was built.", None),
    ("The mill of 1820 {{box|\n|x=y\n}} was the first of them.", None),
    ("The spring holds {{chem|H|2|S}} of a great age.", None),
    ("It is {{#if:x|longer|shorter}} than the Brenn.", None),
    ("It is {{{1|longer}}} than the Brenn.", None),
]  # fmt: skip


def source(sentence):
    return sentence.replace("«", "").replace("»", "")


@pytest.mark.parametrize(("sentence", "shown"), SENTENCES, ids=[s for s, _ in SENTENCES])
def test_a_template_in_a_sentence(sentence, shown):
    found = render(source(sentence))
    if shown is None:
        assert any(HOLE in text for text in found)
    else:
        assert found == (_SLOT.sub(shown, sentence),)


@pytest.mark.parametrize("template", ["convert|{}|km|mi", "formatnum:{}", "As of|2011|{}"])
def test_a_number_of_more_digits_than_python_reads_leaves_a_hole(template):
    shown = "{{" + template.format("1" * 5000) + "}}"
    assert render(f"The road is {shown} long.") == (f"The road is {HOLE} long.",)


def test_what_stands_apart_is_no_hole_and_within_a_sentence_it_is():
    text = "The Alda is a river."
    for box in ("{{main|Brenn}}", "{{Infobox river|a=b}}", "{{clear}}", "{{odd\n|a=b\n}}"):
        assert render(f"{box}{text}") == (text,)
        assert render(f"{text} {box}") == (text,)
        assert render(f"{text}\n{box}\n{text}") == (text, text)
        assert render(f"The Alda {box} is a river.") == (f"The Alda {HOLE} is a river.",)
        assert render(f"{box} is a river.") == (f"{HOLE}is a river.",)
        assert render(f"The Alda is {box}") == (f"The Alda is{HOLE}",)


@pytest.mark.parametrize(
    "name", ["r", "ref", "note", "cn", "who", "when", "sfn", "full", "main", "for", "stub", "about"]
)
def test_a_template_is_known_by_its_whole_name(name):
    for longer in (f"{name}ton", f"{name} of old", f"un{name}", f"{name}1"):
        assert render(f"It is {{{{{longer}|x}}}} here.") == (f"It is {HOLE} here.",)


def test_a_paragraph_that_is_broken_into_lines_is_one():
    first = "The Alda is a river of the north, which rises near"
    assert render(f"{first}\nKessel and flows to the sea.") == (
        f"{first} Kessel and flows to the sea.",
    )
    assert render("It rises\nnear Kessel.\nIt is long.") == ("It rises near Kessel.", "It is long.")
    assert render(f"{first}\n* Kessel\n* Brenn") == (f"{first}{HOLE}", "* Kessel", "* Brenn")
    assert render("Geography\nIt rises near Kessel.") == ("Geography", "It rises near Kessel.")
    assert render(f"{first}\n\nwhich is a town.") == (
        f"{first}{HOLE}",
        f"{HOLE}which is a town.",
    )


# ---- whole pages

SUBJECTS = ("Alda", "Brenn", "Corvo", "Darrow", "Elmet", "Fosse", "Garn", "Hollis", "Ister")
OPENINGS = (
    "The '''River {a}''' is a river of [[{b}land]] that rises near the village of [[{c}]].",
    "'''{a}''' was a town on the coast of [[{b}land]], which the people of [[{c}]] had founded.",
    "The old road from [[{a}]] to [[{b}]] was built in 1843 by the engineer [[{c} Moss]].",
    "The church of [[{a}]] stands on a hill of the {b} range and was opened in 1731 by [[{c}]].",
)
CLOSINGS = (
    "It is the largest of its kind in the land, and [[{b} Moss]] has written of it.",
    "The people of [[{c}]] have traded with it since the middle of the seventeenth century.",
)
BEFORE = (
    "",
    "{{Infobox river|length={{convert|84|km}}}}\n",
    "{{Infobox river\n| name = {{lang-de|Alda}}\n| length = 84\n}}\n",
    "{{short description|A river}}{{Use dmy dates|date=May 2011}}\n",
    "{{main|Basin of the Alda}}\n",
    "{{Unknown box\n|a=1\n}}\n",
    "[[File:Alda.jpg|thumb|The river [[Alda]] in {{circa|1900}}]]\n",
    "== History ==\n",
)
AFTER = ("", "\n{{clear}}\n", " {{clear}}", "\n{{Brennland-river-stub}}\n[[Category:Rivers]]")


def pages(count, seed=0):
    """`count` pages of one paragraph, each with what it reads as, or None for one with a hole."""
    rng = random.Random(seed)
    order = itertools.cycle(rng.sample(SENTENCES, len(SENTENCES)))
    for _ in range(count):
        names = dict(zip("abc", rng.sample(SUBJECTS, 3), strict=True))
        opening, closing = (rng.choice(x).format(**names) for x in (OPENINGS, CLOSINGS))
        middle = [next(order) for _ in range(rng.choice((1, 1, 2)))]
        if rng.random() < 0.25:  # the source is broken into lines
            opening = "\n[[".join(opening.rsplit(" [[", 1))
        text = " ".join([opening, *(source(sentence) for sentence, _ in middle), closing])
        read = " ".join(
            [
                opening,
                *(_SLOT.sub(HOLE if shown is None else shown, s) for s, shown in middle),
                closing,
            ]
        )
        read = re.sub(r"'''|\[\[|\]\]", "", read).replace("\n", " ")
        whole = all(shown is not None for _, shown in middle)
        yield f"{rng.choice(BEFORE)}{text}{rng.choice(AFTER)}", read if whole else None


def test_of_many_generated_pages_no_broken_paragraph_is_kept(tmp_path):
    """900 pages with every template above, in a dump: what is kept is right to the letter."""
    made = list(pages(900))
    path = tmp_path / "wiki.xml"
    body = "".join(page(i, f"Page {i}", text) for i, (text, _) in enumerate(made))
    path.write_text(f"{HEAD}{body}</mediawiki>", encoding="utf-8")
    cfg = CorpusConfig(str(path), "", 0, 0.0, passage_words=400)
    kept = {p.id: p.text for p in readers.read_corpus(cfg)}
    right = {f"{i}-0": read for i, (_, read) in enumerate(made) if read is not None}
    assert kept == right
    assert 400 < len(right) < 700


@pytest.mark.parametrize(
    ("text", "has_hole"),
    [
        ("The three mills on the lower river are the following:\n* one\n* two", True),
        (
            "The parish priest, who had seen it burn, later wrote:\n<blockquote>No.</blockquote>",
            True,
        ),
        ("Of the mills that stood on the lower river in 1840,\n{|\n| a table\n|}", True),
        ("Among the mills that stood on the lower river are\n: the old one", True),
        ("Grain is ground between two stones of a hard kind, e.g.\n{|\n| basalt\n|}", True),
        ("The three mills on the lower river burned down.\n* one\n* two", False),
        ('The priest wrote of the mill that "it burned for a week."', False),
        ("The mill burned down (so did the bridge beside it.)<ref>A.</ref>", False),
        ("The priest wrote of the mill, the bridge, the ferry …", False),
        ("下游的三座磨坊在一八四〇年的大火中全部被烧毁，" * 2 + "此后没有重建。", False),
        ("下游的三座磨坊在一八四〇年的大火中全部被烧毁，" * 2 + "分别是：", True),
        ("The mills of the lower river", False),  # a heading, which is no prose anyway
    ],
)
def test_a_paragraph_whose_last_sentence_goes_on_elsewhere_is_not_whole(text, has_hole):
    first, *_ = render(text)
    assert first.endswith(HOLE) == has_hole
    assert HOLE not in first[:-1]
