// The list of trajectories: filters, order, full-text search; only rows in sight are elements.

const ROW = 62; // pixels, as in the style
const ORDERS = {
  failures: ["failures first", (a, b) => failure(a) - failure(b)],
  best: ["best first", (a, b) => (b.score ?? -Infinity) - (a.score ?? -Infinity)],
  searches: ["most searches first", (a, b) => b.searches - a.searches],
  group: ["by RL group", (a, b) => a.group.localeCompare(b.group, "en", { numeric: true })],
  file: ["as in the files", () => 0],
};
const NO_FILTERS = { text: "", place: "", suite: "", method: "", status: "", masks: "", searches: "", group: "", least: "", most: "", order: "failures" };
const list = { filters: { ...NO_FILTERS }, found: [], at: 0 };

/** What is worst comes first: the lower its score, then one that did not end with an answer. */
function failure(row) {
  return (row.score ?? 0) + (row.status === "answered" ? 0.0001 : 0);
}

/** Of rows that are alike, those of the model as it ended come first, answering as an agent does. */
function interest(row) {
  const group = report.groups[row.of];
  const places = (report.places ??= [...new Set(report.groups.map(placeName))]);
  const methods = (report.methods ??= inOrder("methods", report.groups.map((g) => g.method)));
  return methods.indexOf(group.method) * places.length - places.indexOf(placeName(group));
}

const fieldOf = {
  place: (r) => placeName(report.groups[r.of]),
  suite: (r) => report.groups[r.of].suite,
  method: (r) => report.groups[r.of].method,
  status: (r) => r.status,
  masks: (r) => r.masks ?? "",
  searches: (r) => r.searches,
  group: (r) => r.group,
};

/** Whether a row passes all filters but that of text. */
function passes(row, filters) {
  for (const [name, get] of Object.entries(fieldOf)) {
    if (filters[name] !== "" && String(get(row)) !== filters[name]) return false;
  }
  if (filters.least !== "" && !(row.score >= +filters.least)) return false;
  return filters.most === "" || row.score <= +filters.most;
}

/** The places in the list of all rows that pass, in the order that is asked for. */
async function filtered(filters) {
  const { rows } = report.main;
  const wanted = filters.text.toLowerCase().split(/\s+/).filter(Boolean);
  const texts = wanted.length ? await searchable() : null;
  const found = [];
  for (let i = 0; i < rows.length; i++) {
    if (passes(rows[i], filters) && (!texts || wanted.every((w) => texts[i].includes(w)))) found.push(i);
  }
  const compare = ORDERS[filters.order][1];
  return found.sort((a, b) => compare(rows[a], rows[b]) || interest(rows[a]) - interest(rows[b]) || a - b);
}

function trajectoriesView() {
  const { rows } = report.main;
  if (!rows.length) return [h("h1", {}, "Trajectories"), h("p", { class: "absent" }, "None were kept.")];
  list.count = h("p", { class: "faint", "aria-live": "polite" });
  list.inner = h("div", { class: "inner" });
  list.box = h("div", { class: "rows", role: "listbox", tabindex: "0", "aria-label": "Trajectories", onscroll: drawRows, onkeydown: rowKeys }, list.inner);
  list.detail = h("article", { class: "detail", tabindex: "-1", "aria-label": "Trajectory" });
  list.panes = h("div", { class: "panes" }, h("div", { class: "list" }, filterControls(), list.count, list.box), list.detail);
  new ResizeObserver(drawRows).observe(list.box);
  refilter();
  (window.requestIdleCallback ?? setTimeout)(searchable); // so that the first search need not wait
  return [h("h1", { class: "hidden" }, "Trajectories"), list.panes];
}

function filterControls(isOpen = matchMedia("(min-width: 900px)").matches || anyFilter()) {
  list.drawn = list.filters;
  const set = (name) => (value) => { list.filters[name] = value; refilter(); };
  const values = (name) => {
    const counts = new Map();
    for (const row of report.main.rows) counts.set(fieldOf[name](row), (counts.get(fieldOf[name](row)) ?? 0) + 1);
    return [...counts].filter(([v]) => v !== "");
  };
  const chooser = (name, label, text = String) => {
    const known = values(name);
    if (known.length < 2 && !(known.length === 1 && list.filters[name])) return null;
    if (typeof known[0][0] === "number") known.sort((a, b) => a[0] - b[0]);
    return select(label, [["", "all"], ...known.map(([v, n]) => [v, `${text(v)} (${number(n)})`])], list.filters[name], set(name));
  };
  const bound = (name, label) =>
    h("label", { class: "field" }, h("span", {}, label), h("input", { type: "number", "aria-label": label, step: "any", inputmode: "decimal", value: list.filters[name], oninput: (e) => set(name)(e.target.value) }));
  const search = h("input", { type: "search", id: "search", placeholder: "Search all text", "aria-label": "Search all text", value: list.filters.text, oninput: (e) => set("text")(e.target.value) });
  const reset = () => {
    list.filters = { ...NO_FILTERS };
    keepingFocus(list.panes, () => controls.replaceWith(filterControls(true)));
    refilter();
  };
  const controls = h(
    "div",
    { class: "filters" },
    search,
    h(
      "details",
      { open: isOpen },
      h("summary", {}, "Filter and order"),
      h(
        "div",
        { class: "controls" },
        select("Order", Object.entries(ORDERS).filter(([k]) => k !== "group" || values("group").length).map(([k, [text]]) => [k, text]), list.filters.order, set("order")),
        chooser("place", "From"),
        chooser("suite", "Suite", (v) => named("suites", v)),
        chooser("method", "Method", (v) => named("methods", v)),
        chooser("status", "Status", (v) => named("statuses", v)),
        chooser("searches", "Searches"),
        chooser("masks", "Masks"),
        chooser("group", "RL group"),
        bound("least", "Score ≥"),
        bound("most", "Score ≤"),
        button("Clear", reset),
      ),
    ),
  );
  return controls;
}

function anyFilter() {
  return Object.keys(NO_FILTERS).some((k) => list.filters[k] !== NO_FILTERS[k]);
}

let asked = 0;
async function refilter() {
  const mine = ++asked;
  if (list.filters.text && !haystacks) fill(list.count, "Reading …");
  const found = await filtered(list.filters);
  if (mine !== asked) return; // another filter was set since
  list.found = found;
  list.at = Math.max(0, found.indexOf(list.open));
  const { rows, groups } = report.main;
  const total = groups.reduce((sum, g) => sum + g.items.length, 0);
  const more = total > rows.length ? `; the files hold ${number(total)}` : "";
  fill(list.count, found.length === rows.length ? `${plural(rows.length, "trajectory")}${more}` : `${number(found.length)} of ${plural(rows.length, "trajectory")}`);
  list.box.scrollTop = 0;
  drawRows();
  const isWide = matchMedia("(min-width: 900px)").matches;
  if (isWide && found.length && !list.detail.firstChild) openTrajectory(list.open ?? found[0], false);
}

/** Makes elements of the rows in sight, and of some around them. */
function drawRows() {
  const { box, inner, found } = list;
  const first = Math.max(0, Math.floor(box.scrollTop / ROW) - 4);
  const last = Math.min(found.length, first + Math.ceil(box.clientHeight / ROW) + 8);
  inner.style.height = `${found.length * ROW}px`;
  const shown = [];
  for (let i = first; i < last; i++) shown.push(rowElement(i));
  fill(inner, shown);
  box.setAttribute("aria-activedescendant", found.length ? `row-${list.at}` : "");
}

function rowElement(i) {
  const index = list.found[i];
  const entry = report.main.rows[index];
  const group = report.groups[entry.of];
  const known = entry.score !== null;
  const chips = [named("statuses", entry.status || "status unknown"), plural(entry.searches, "search")];
  if (entry.masks) chips.push(plural(entry.masks, "mask"));
  if (entry.group) chips.push(`group ${entry.group}`);
  const where = [named("suites", group.suite), named("methods", group.method), placeName(group)].filter(Boolean);
  return h(
    "div",
    {
      class: "row", role: "option", id: `row-${i}`, style: `top:${i * ROW}px`,
      "aria-selected": String(i === list.at), "aria-current": index === list.open ? "true" : null,
      "aria-setsize": list.found.length, "aria-posinset": i + 1,
      onclick: () => { list.at = i; openTrajectory(index); },
    },
    h("span", { class: "score", style: known ? `--share:${Math.max(0, Math.min(1, entry.score))}` : null }, known ? score(entry.score, 2) : ABSENT),
    h("span", { class: "title", dir: "auto" }, entry.title || entry.id),
    h("span", { class: "chips" }, chips.join(" · ")),
    h("span", { class: "where" }, where.join(" · ")),
  );
}

function rowKeys(event) {
  const page = Math.max(1, Math.floor(list.box.clientHeight / ROW) - 1);
  const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity, j: 1, k: -1 };
  if (event.key === "Enter" && list.found.length) openTrajectory(list.found[list.at]);
  else if (event.key in moves) moveRow(moves[event.key]);
  else return;
  event.preventDefault();
}

function moveRow(by) {
  list.at = Math.max(0, Math.min(list.found.length - 1, list.at + by));
  const top = list.at * ROW;
  const { box } = list;
  if (top < box.scrollTop) box.scrollTop = top;
  else if (top + ROW > box.scrollTop + box.clientHeight) box.scrollTop = top + ROW - box.clientHeight;
  drawRows();
}
