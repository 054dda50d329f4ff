// The page: its parts, which of them is shown, and whether it is dark.

const VIEWS = {
  overview: ["Overview", overview],
  evaluation: ["Evaluation", evaluationView],
  curves: ["Curves", curvesView],
  trajectories: ["Trajectories", trajectoriesView],
  config: ["Config", configView],
};

function remembered(value) {
  try {
    if (value === undefined) return localStorage.getItem("masksearch-theme");
    localStorage.setItem("masksearch-theme", value);
  } catch {
    // Storage is closed to this page: the choice holds while it is open.
  }
  return null;
}

function isDark() {
  const chosen_ = document.documentElement.dataset.theme;
  return chosen_ ? chosen_ === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function setTheme(theme) {
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  const toggle = document.getElementById("theme");
  toggle.textContent = isDark() ? "Light" : "Dark";
  colours.clear();
  for (const state of charts) state.drawn.redraw(false);
}

/** Shows what the address names: a part of the report, or a trajectory. */
function show() {
  const name = decodeURIComponent(location.hash.slice(1)) || "overview";
  const isOne = name.startsWith("t-") && report.main.rows.length > 0;
  const index = isOne ? report.main.rows.findIndex((r) => `t-${r.id}` === name) : -1;
  const view = isOne ? "trajectories" : name in VIEWS ? name : "overview";
  const isDrawn = document.body.dataset.view === view && view === "trajectories" && list.drawn === list.filters;
  for (const link of document.querySelectorAll("#views a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!isDrawn) drawView(view, index);
  if (index >= 0) openTrajectory(index);
  else if (isOne) showMissing(name);
  else if (isDrawn) leaveTrajectory();
}

function drawView(view, index) {
  for (const figure of document.querySelectorAll("figure.chart")) figure.remove_();
  document.body.dataset.view = view;
  if (index >= 0) list.open = index;
  fill(document.getElementById("main"), VIEWS[view][1]());
  performance.mark("shown");
  scrollTo(0, 0);
}

function keyedPage(event) {
  const isWriting = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
  if (event.key !== "/" || isWriting || event.ctrlKey || event.metaKey) return;
  location.hash = "#trajectories";
  setTimeout(() => document.getElementById("search")?.focus(), 0);
  event.preventDefault();
}

async function start() {
  const main = document.getElementById("main");
  try {
    await openData();
  } catch (error) {
    fill(main, h("p", { class: "absent" }, `The report's data cannot be read: ${error.message}`));
    return;
  }
  const { runs, rows } = report.main;
  document.getElementById("runs").textContent = runs.map((r) => r.name).join(", ");
  const links = Object.entries(VIEWS).map(([name, [text]]) => h("a", { href: `#${name}`, "data-view": name }, text, name === "trajectories" && rows.length ? h("small", {}, number(rows.length)) : null));
  fill(document.getElementById("views"), links);
  document.getElementById("theme").addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    remembered(theme);
    setTheme(theme);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme());
  addEventListener("hashchange", show);
  document.addEventListener("keydown", keyedPage);
  show();
}

setTheme(remembered());
start();
