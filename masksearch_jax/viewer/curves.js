// The view of curves: trainings overlaid, one chart for each metric, in groups.

const KINDS = { sft: "Supervised fine-tuning", rl: "Reinforcement learning", iterations: "Self-evolution by iteration" };
const OPEN_GROUPS = ["Reward and answers", "Loss", "Searches, length and endings", "Iterations"];
const curvesState = { smoothing: 0, log: false, x: "steps", find: "", hidden: new Set(), zoom: {} };

/** What is drawn: trainings as they are, iterations as one more kind. */
function allSeries() {
  const iterations = report.main.runs.flatMap((run, i) => (run.iterations.length ? [iterationSeries(run, i)] : []));
  return [...report.main.series, ...iterations];
}

function iterationSeries(run, index) {
  const rows = run.iterations;
  const recall = (row, end) => row.span_recall?.[end] ?? null;
  const shown = [...new Set(rows.flatMap(Object.keys))].filter((k) => k !== "iteration" && rows.some((r) => typeof r[k] === "number"));
  const values = { span_recall: rows.map((r) => recall(r, "value")) };
  for (const name of shown) values[name] = rows.map((r) => (typeof r[name] === "number" ? r[name] : null));
  const title = (k) => report.main.names.iterations[k] ?? [words(k.replace(/_k(\d)$/, ", $1 masks")), ""];
  return {
    run: index, place: "", kind: "iterations", steps: rows.map((r) => r.iteration), seconds: null, values, marks: [],
    low: { span_recall: rows.map((r) => recall(r, "low")) },
    high: { span_recall: rows.map((r) => recall(r, "high")) },
    metrics: Object.fromEntries(Object.keys(values).map((k) => [k, ["Iterations", ...title(k)]])),
    width: 1, unusable: {}, rows: rows.length,
  };
}

function curvesView() {
  const series = allSeries();
  const body = h("div", {});
  const draw = () => fillCurves(body, series);
  const timed = series.some((s) => s.seconds);
  const controls = h(
    "div",
    { class: "controls" },
    h("label", { class: "field" }, h("span", {}, "Smoothing"), h("input", {
      type: "range", min: "0", max: "0.98", step: "0.02", value: curvesState.smoothing, id: "smoothing",
      oninput: (e) => { curvesState.smoothing = +e.target.value; draw(); },
    })),
    select("Over", [["steps", "steps"], ...(timed ? [["seconds", "wall time"]] : [])], curvesState.x, (v) => { curvesState.x = v; curvesState.zoom = {}; draw(); }),
    checkbox("Log axis", curvesState.log, (v) => { curvesState.log = v; draw(); }),
    h("label", { class: "field" }, h("span", {}, "Metric"), h("input", { type: "search", placeholder: "name", value: curvesState.find, oninput: (e) => { curvesState.find = e.target.value; draw(); } })),
    button("Whole range", () => { curvesState.zoom = {}; draw(); }),
  );
  const help = h("p", { class: "faint" }, "Drag over a chart to zoom, double click to see all. With a finger: slide to read values, pinch to zoom. With keys: arrows read, + and − zoom, 0 shows all.");
  draw();
  return [h("h1", {}, "Curves"), series.length ? [controls, help] : h("p", { class: "absent" }, "No training has logged anything yet."), body];
}

function fillCurves(body, series) {
  for (const figure of body.querySelectorAll("figure")) figure.remove_();
  const sight = new IntersectionObserver(
    (entries) => entries.forEach((e) => e.isIntersecting && (e.target.draw(), sight.unobserve(e.target))),
    { rootMargin: "200px" },
  );
  const sections = Object.keys(KINDS).flatMap((kind) => {
    const members = series.filter((s) => s.kind === kind);
    return members.length ? [kindSection(kind, members, series, () => keepingFocus(body, () => fillCurves(body, series)), sight)] : [];
  });
  fill(body, sections);
}

/** All charts of one kind of training, with the key of its lines, which hides and shows them. */
function kindSection(kind, members, series, redraw, sight) {
  const figures = [];
  const shown = members.filter((s) => !curvesState.hidden.has(s));
  const legend = h("div", { class: "legend" }, members.map((s) => {
    const hidden = curvesState.hidden.has(s);
    const toggle = () => { hidden ? curvesState.hidden.delete(s) : curvesState.hidden.add(s); redraw(); };
    return button([key(members.indexOf(s)), placeName(s)], toggle, { "aria-pressed": String(!hidden), class: "toggle" });
  }));
  const keys = [...new Set(members.flatMap((s) => Object.keys(s.metrics)))];
  const find = curvesState.find.toLowerCase();
  const groups = new Map();
  for (const metric of keys) {
    const [group, title, unit] = members.find((s) => s.metrics[metric]).metrics[metric];
    if (!`${title} ${metric}`.toLowerCase().includes(find)) continue;
    const chart = chartOf(metric, title, unit, shown, members, kind);
    if (!chart.lines.length) continue;
    const figure = lineChart(chart, curvesState, (range) => {
      curvesState.zoom[kind] = range;
      for (const other of figures) if (other !== figure) other.zoom(range);
    });
    figure.zoom(curvesState.zoom[kind] ?? null);
    figures.push(figure);
    sight.observe(figure);
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push([metric, figure]);
  }
  const order = Object.values(members).flatMap((s) => Object.values(s.metrics).map((m) => m[0]));
  const sorted = [...groups].sort((a, b) => groupPlace(a[0], order) - groupPlace(b[0], order));
  return h(
    "section",
    {},
    h("h2", {}, KINDS[kind]),
    legend,
    sorted.map(([group, found]) =>
      h("details", { class: "group", open: !!find || OPEN_GROUPS.includes(group) }, h("summary", {}, group, h("small", {}, plural(found.length, "curve"))), h("div", { class: "grid" }, found.map((f) => f[1]))),
    ),
  );
}

function groupPlace(group, order) {
  const known = report.main.names.groups.indexOf(group);
  return known >= 0 ? known : 1000 + order.indexOf(group);
}

function chartOf(metric, title, unit, shown, members, kind) {
  const byTime = curvesState.x === "seconds" && kind !== "iterations";
  const lines = shown
    .filter((s) => s.values[metric] && (!byTime || s.seconds))
    .map((s) => ({
      label: placeName(s),
      colour: members.indexOf(s),
      x: byTime ? s.seconds : s.steps,
      y: s.values[metric],
      low: s.low?.[metric],
      high: s.high?.[metric],
      marks: byTime ? [] : s.marks,
    }));
  const notes = shown.flatMap((s) => [
    s.unusable[metric] ? `${placeName(s)}: ${plural(s.unusable[metric], "value")} not finite` : [],
    s.values[metric] && s.width > 1 ? `${placeName(s)}: each point is the mean of ${s.width}` : [],
  ]).flat();
  return { title, unit, lines, note: notes.join("; "), xName: kind === "iterations" ? "iteration" : byTime ? "after" : "step", xText: byTime ? duration : null };
}
