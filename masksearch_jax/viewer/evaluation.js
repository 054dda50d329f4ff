// The view of evaluations: one table for all suites, then each suite with intervals, by breakdown,
// and in pairs.

const RESAMPLES = 2000;
const chosen = {}; // by suite: what the reader has chosen

/** Name of an evaluation: where it stands and by which method it answered. */
function evaluatedName(e) {
  return `${placeName(e)}, ${named("methods", e.method)}`;
}

/** Evaluations by method, then as they stand in the recipe. */
function byMethod(entries) {
  const order = inOrder("methods", entries.map((e) => e.method));
  return order.map((method) => [method, entries.filter((e) => e.method === method)]);
}

function suitesOf(evaluations) {
  return inOrder("suites", evaluations.map((e) => e.suite));
}

/** Methods and trainings down, suites across, their average: the main score of each. */
function resultsTable() {
  const { evaluations, origins } = report.main;
  const suites = suitesOf(evaluations);
  if (!suites.length) return h("p", { class: "absent" }, "Not evaluated.");
  const names = suites.map((suite) => {
    const keys = evaluations.filter((e) => e.suite === suite).flatMap((e) => Object.keys(e.metrics));
    return [suite, mainScore(suite, keys)];
  });
  const head = ["", ...names.map(([suite, metric]) => [named("suites", suite), h("small", {}, named("scores", metric))])];
  if (suites.length > 1) head.push("average");
  const rows = byMethod(evaluations).flatMap(([method, entries]) => {
    const places = [...new Map(entries.map((e) => [placeName(e), e])).keys()];
    return [
      h("tr", { class: "first" }, h("th", { colspan: head.length, scope: "rowgroup" }, named("methods", method))),
      places.map((place) => {
        const own = entries.filter((e) => placeName(e) === place);
        const cells = names.map(([suite, metric]) => own.find((e) => e.suite === suite)?.metrics[metric]);
        const mean = origins.find((o) => placeName(o) === place)?.average[method];
        const average = mean?.[3] === suites.length ? mean : null; // not of fewer suites than others
        return row(place, [...cells.map((c) => drawnEstimate(c, placeColour(own[0]))), ...(suites.length > 1 ? [estimate(average)] : [])]);
      }),
    ];
  });
  return table("Results by method and suite", head, rows, "results");
}

/** The ends of the scale that intervals are drawn to, as the head of their column. */
function scale(least, most) {
  return h("span", { class: "ends" }, h("span", {}, least), h("span", {}, most));
}

/** The colour of a place: the same in all tables. */
function placeColour(e) {
  report.colours ??= [...new Set(report.main.evaluations.map(placeName))];
  return Math.max(0, report.colours.indexOf(placeName(e)));
}

function drawnEstimate(cell, colour_) {
  return [estimate(cell), cell && cell[0] <= 1 ? interval(cell, 0, 1, colour_) : null];
}

function evaluationView() {
  const { evaluations } = report.main;
  const suites = suitesOf(evaluations);
  return [
    h("h1", {}, "Evaluation"),
    h("p", { class: "faint" }, "Bars and small figures are 95% bootstrap intervals."),
    suites.length ? null : h("p", { class: "absent" }, "Not evaluated."),
    suites.map((suite) => {
      const section = h("section", {});
      drawSuite(section, suite);
      return section;
    }),
    report.main.origins.map(comparedPart),
    report.main.origins.length > 0 && h("section", {}, h("h2", {}, "What made them"), report.main.origins.map(originPart)),
  ];
}

/** How an evaluation compares with another run, as it says itself. */
function comparedPart(origin) {
  const { run, differences } = origin.compare;
  const compared = Object.entries(differences).flatMap(([suite, methods]) =>
    Object.entries(methods).map(([method, cells]) => {
      const metric = mainScore(suite, Object.keys(cells));
      const [value, low, high, n] = cells[metric] ?? [null, null, null, 0];
      return row(`${named("suites", suite)}, ${named("methods", method)}`, [named("scores", metric), signed(value), `${signed(low)} to ${signed(high)}`, number(n)]);
    }));
  return compared.length > 0 && h("section", {}, h("h2", {}, `${placeName(origin)} less ${run}`), table(`Paired differences to ${run}`, ["", "measure", "difference", "95% interval", "items"], compared));
}

/** Of an evaluation: its model, files, seeds and versions. */
function originPart(origin) {
  const pairs = origin.pairs.map(([k, v]) => row(words(k.replaceAll(".", " · ")), [typeof v === "string" ? v : JSON.stringify(v)]));
  return h("details", { class: "more" }, h("summary", {}, placeName(origin)), table(`What made the evaluation of ${placeName(origin)}`, ["", ""], pairs, "pairs"));
}

function drawSuite(section, suite) {
  const entries = report.main.evaluations.filter((e) => e.suite === suite);
  const keys = inOrder("scores", entries.flatMap((e) => Object.keys(e.metrics)));
  const choice = (chosen[suite] ??= { metric: mainScore(suite, keys), by: "", method: "", against: "" });
  const redraw = () => keepingFocus(section, () => drawSuite(section, suite));
  // a control within a part is used in an open part, of which the event `toggle` may be yet to come
  const choose = (name, part) => (value) => { Object.assign(choice, { [name]: value }, part && { [part]: true }); redraw(); };
  fill(
    section,
    h("h2", {}, named("suites", suite)),
    h("div", { class: "controls" }, select("Measure", keys.map((k) => [k, named("scores", k)]), choice.metric, choose("metric"))),
    intervalTable(entries, choice.metric, suite),
    lostItems(entries),
    judgeTable(entries, suite),
    leakedTable(entries, suite),
    h("details", { class: "more" }, h("summary", {}, "All measures"), allMeasures(entries, keys, suite)),
    breakdowns(entries, choice, choose),
    paired(suite, choice, choose),
    difficultyTables(suite),
  );
}

/** What each judge finds right, how much of it exact match agrees with, and what is unreadable. */
function judgeTable(entries, suite) {
  const rows = entries.flatMap((e) => e.judges.map(({ model, cell, agreement, unreadable }) =>
    row([evaluatedName(e), h("small", {}, `by ${model}`)], [estimate(cell), estimate(agreement), number(unreadable), number(cell[3])])));
  if (!rows.length) return null;
  return [h("h3", {}, "Judged"), table(`${named("suites", suite)}: judged`, ["", "right", "agrees with exact match", "unreadable", "n"], rows)];
}

/** The suite's measure over all items, and over those that share nothing with what was trained on. */
function leakedTable(entries, suite) {
  const found = report.main.origins.flatMap((origin) => {
    const told = origin.leakage.suites?.[suite];
    const own = entries.filter((e) => placeName(e) === placeName(origin));
    return told ? own.map((e) => [e, told, told.without[e.method]]) : [];
  });
  if (!found.length) return null;
  const rows = found.map(([e, told, without]) => {
    const metric = mainScore(suite, Object.keys(e.metrics));
    const cell = without?.[metric];
    return row([evaluatedName(e), h("small", {}, `${number(told.shared)} of ${plural(told.items, "item")} left out`)], [estimate(cell), estimate(e.metrics[metric]), number(cell?.[3])]);
  });
  return [h("h3", {}, "Without leaked items"), table(`${named("suites", suite)}: without leaked items`, ["", "without", "all", "n"], rows)];
}

/** What makes a span hard: factors and their bins down, what came of them across. */
function difficultyTables(suite) {
  const measures = [["source_first", "source first"], ["reciprocal_rank", "1/rank of the source"], ["span_recall", "span recall"]];
  return report.main.origins.filter((o) => o.difficulty[suite]).map((origin) => {
    const rows = Object.entries(origin.difficulty[suite]).flatMap(([factor, bins]) => [
      h("tr", { class: "first" }, h("th", { colspan: 5, scope: "rowgroup" }, words(factor))),
      bins.map((bin) => row(bin.label, [number(bin.n), ...measures.map(([name]) => estimate(bin.cells[name]))])),
    ]);
    return h("details", { class: "more" }, h("summary", {}, `What makes a span hard: ${placeName(origin)}`), table(`What makes a span hard: ${placeName(origin)}`, ["", "spans", ...measures.map(([, text]) => text)], rows));
  });
}

function intervalTable(entries, metric, suite) {
  const cells = entries.map((e) => e.metrics[metric]).filter(Boolean);
  const most = Math.max(1, ...cells.map((c) => c[2] ?? c[0]));
  const least = Math.min(0, ...cells.map((c) => c[1] ?? c[0]));
  const rows = byMethod(entries).flatMap(([method, members]) => [
    h("tr", { class: "first" }, h("th", { colspan: 4, scope: "rowgroup" }, named("methods", method))),
    members.filter((e) => e.metrics[metric]).map((e) => {
      const cell = e.metrics[metric];
      return row(placeName(e), [interval(cell, least, most, placeColour(e)), estimate(cell), number(cell[3])]);
    }),
  ]);
  return table(`${named("suites", suite)}: ${named("scores", metric)}`, ["", scale(number(least, 1), number(most, 1)), named("scores", metric), "n"], rows, "intervals");
}

function lostItems(entries) {
  const lost = entries.filter((e) => Object.keys(e.lost).length);
  return lost.map((e) => h("p", { class: "notes" }, `${evaluatedName(e)}: without a score: ${Object.entries(e.lost).map(([why, n]) => `${number(n)} ${why}`).join(", ")}.`));
}

function allMeasures(entries, keys, suite) {
  const rows = entries.map((e) => row(evaluatedName(e), keys.map((k) => estimate(e.metrics[k]))));
  return table(`${named("suites", suite)}: all measures`, ["", ...keys.map((k) => named("scores", k))], rows);
}

/** A measure by the values of a breakdown: these down, evaluations across. */
function breakdowns(entries, choice, choose) {
  const kinds = [...new Set(entries.flatMap((e) => Object.keys(e.by).filter((k) => Object.keys(e.by[k]).length > 1)))];
  if (!kinds.length) return null;
  const by = kinds.includes(choice.by) ? choice.by : kinds[0];
  const known = entries.filter((e) => Object.keys(e.by[by] ?? {}).length);
  const methods = inOrder("methods", known.map((e) => e.method));
  const method = methods.includes(choice.method) ? choice.method : methods[0];
  const shown = known.filter((e) => e.method === method);
  const values = [...new Set(shown.flatMap((e) => Object.keys(e.by[by])))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const rows = values.map((value) => {
    const cells = shown.map((e) => e.by[by][value]?.[choice.metric]);
    const counts = [...new Set(cells.filter(Boolean).map((c) => c[3]))];
    const told = (n) => h("small", {}, `n ${number(n)}`);
    if (counts.length === 1) return row([words(value), told(counts[0])], cells.map((c) => estimate(c)));
    return row(words(value), cells.map((c) => [estimate(c), c && told(c[3])])); // each of its own n
  });
  const drawn = h(
    "details",
    { class: "more", open: choice.isSplit },
    h("summary", {}, `${named("scores", choice.metric)} by ${kinds.map(words).join(", ")}`),
    h(
      "div",
      { class: "controls" },
      kinds.length > 1 && select("By", kinds.map((k) => [k, words(k)]), by, choose("by", "isSplit")),
      methods.length > 1 && select("Method", methods.map((m) => [m, named("methods", m)]), method, choose("method", "isSplit")),
    ),
    table(`By ${words(by)}`, ["", ...shown.map(placeName)], rows),
  );
  drawn.addEventListener("toggle", () => (choice.isSplit = drawn.open));
  return drawn;
}

// ---- paired differences

/** The groups of trajectories of a suite that have a score, each with the place of every item. */
function scoredGroups(suite, metric) {
  return report.groups.filter((g) => g.suite === suite && g.scores[metric] && g.method !== "rollout");
}

/** Differences of all others from one, on the items that both have. */
function paired(suite, choice, choose) {
  const groups = scoredGroups(suite, choice.metric);
  if (groups.length < 2) return null;
  const index = groups.findIndex((g) => evaluatedName(g) === choice.against);
  const most = Math.max(...groups.map((g) => g.items.length));
  const reference = groups[index] ?? groups.find((g) => g.items.length === most);
  const rows = h("div", {});
  const drawn = h(
    "details",
    { class: "more", open: choice.isOpen },
    h("summary", {}, "Paired differences"),
    select("Less", groups.map((g) => [evaluatedName(g), evaluatedName(g)]), evaluatedName(reference), choose("against", "isOpen")),
    rows,
  );
  drawn.addEventListener("toggle", () => {
    choice.isOpen = drawn.open;
    if (drawn.open && !rows.firstChild) append(rows, [pairedTable(groups, reference, choice.metric, suite)]);
  });
  return drawn;
}

function pairedTable(groups, reference, metric, suite) {
  const found = groups.filter((g) => g !== reference).map((g) => [g, difference(g, reference, metric)]);
  const known = found.filter(([, d]) => d);
  const most = Math.max(0.01, ...known.flatMap(([, d]) => d.cell.slice(0, 3).map(Math.abs)));
  const rows = found.map(([g, d]) => {
    if (!d) return row(evaluatedName(g), ["", "no item in common", "", ""]);
    const [value, low, high, n] = d.cell;
    const isApart = low > 0 || high < 0;
    const shown = h("span", { class: "estimate" }, isApart ? h("b", {}, signed(value)) : signed(value), h("small", {}, `${signed(low)} to ${signed(high)}`));
    return row(evaluatedName(g), [interval(d.cell, -most, most, placeColour(g)), shown, `${number(d.better)} / ${number(d.worse)}`, number(n)]);
  });
  const title = `${named("suites", suite)}: ${named("scores", metric)} less that of ${evaluatedName(reference)}`;
  return [
    table(title, ["", scale(signed(-most, 2), signed(most, 2)), "difference", "better / worse", "items"], rows, "intervals"),
    h("p", { class: "faint" }, `On the items that both have; bold where the 95% interval (${number(RESAMPLES)} resamples of items) is on one side of 0.`),
  ];
}

/** {cell: [mean, low, high, n], better, worse} of the differences item by item; null without any. */
function difference(one, other, metric) {
  const theirs = new Map(other.items.map((item, i) => [item, other.scores[metric][i]]));
  const found = [];
  one.items.forEach((item, i) => {
    const [a, b] = [one.scores[metric][i], theirs.get(item)];
    if (typeof a === "number" && typeof b === "number") found.push(a - b);
  });
  if (!found.length) return null;
  const random = generator(found.length);
  const means = Float64Array.from({ length: RESAMPLES }, () => {
    let sum = 0;
    for (let i = 0; i < found.length; i++) sum += found[Math.floor(random() * found.length)];
    return sum / found.length;
  }).sort();
  const mean = found.reduce((sum, d) => sum + d, 0) / found.length;
  const ends = [0.025, 0.975].map((share) => means[Math.round(share * (RESAMPLES - 1))]);
  return { cell: [mean, ...ends, found.length], better: found.filter((d) => d > 0).length, worse: found.filter((d) => d < 0).length };
}

/** Numbers in [0, 1), the same for the same seed (mulberry32). */
function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
