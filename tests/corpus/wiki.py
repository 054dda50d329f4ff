"""A wiki of six pages, as a dump, as rows of a table and as a TFDS dataset."""

from xml.sax.saxutils import escape

import pyarrow as pa

RIVER = (
    "The Ember is a river in the north of Valdria, which rises near the town of Old Harrow and "
    "flows for 84 km to the sea. It was first mapped in 1731 by the surveyor Anna Lind, and a "
    "bridge at Lowmere has crossed it since 1902."
)
SEE = (
    "Lowmere is a town on the river Ember that had 4,120 inhabitants in 1990. Its harbour was "
    "built in 1844, and the town hall, which the architect Jonas Rehn designed, was opened by the "
    "king in the spring of 1911 after a fire had destroyed an older one."
)
WIKITEXT = f"""{{{{Infobox river|length={{{{convert|84|km}}}}}}}}
'''The Ember'''{RIVER[9:].replace("Old Harrow", "[[Harrow (town)|Old Harrow]]")}<ref>A book.</ref>

== Towns ==
* [[Lowmere]]
* Harrow
{{| class="wikitable"
| a || b
|}}
[[File:Ember.jpg|thumb|The river [[Ember]]]]
{SEE} It is {{{{convert|5|km|mi}}}} long.<!-- not shown -->
The speed is {{{{rate|3}}}} at most, which is less than that of other rivers in the north of it.
[[Category:Rivers]]
"""


def page(number, title, text, namespace=0, redirect=""):
    moved = f'<redirect title="{redirect}" />' if redirect else ""
    return (
        f"<page><title>{escape(title)}</title><ns>{namespace}</ns><id>{number}</id>{moved}"
        f"<revision><id>{number}0</id><timestamp>2020-01-01T00:00:00Z</timestamp>"
        f'<text xml:space="preserve">{escape(text)}</text></revision></page>\n'
    )


HEAD = '<mediawiki xml:lang="en"><siteinfo><dbname>enwiki</dbname></siteinfo>\n'
PAGES = [
    page(1, "Ember", WIKITEXT),
    page(2, "The Ember", "#REDIRECT [[Ember]]", redirect="Ember"),
    page(3, "Talk:Ember", RIVER, namespace=1),
    page(4, "Ember (disambiguation)", "{{disambiguation}} Ember may be a river."),
    page(5, "Stub", "A stub is a thing that is short."),
    page(6, "Lowmere", SEE),
]
DUMP = [HEAD, *PAGES, "</mediawiki>\n"]


def rows():
    return [
        {"id": "1", "url": "u", "title": "Ember", "text": RIVER},
        {"id": "2", "url": "u", "title": "Lowmere", "text": SEE},
    ]


def write_stream(path, table):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def prepare_tfds(folder) -> str:
    """The rows as a TFDS dataset like `wikipedia`; its folder."""
    import tensorflow_datasets as tfds

    class Wiki(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = tfds.features.Text()
            features = tfds.features.FeaturesDict({"title": text, "text": text})
            return self.dataset_info_from_configs(features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for row in rows():
                yield row["id"], {"title": row["title"], "text": f"{row['text']}\n\nSee also\n"}

    builder = Wiki(data_dir=str(folder))
    builder.download_and_prepare()
    return builder.data_dir
