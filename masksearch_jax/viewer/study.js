// The curves of a study: of each stage and metric a chart, of each arm a line in a band of seeds.

const sight = new IntersectionObserver(
  (entries) => entries.forEach((e) => e.isIntersecting && (e.target.draw(), sight.unobserve(e.target))),
  { rootMargin: "200px" },
);

/** The charts of a stage; a range that is chosen in one is that of all. */
function stageCharts(stage) {
  const figures = stage.charts.map((chart) => {
    const lines = chart.lines.map((line) => ({ ...line, marks: [] }));
    const zoomed = (range) => figures.forEach((other) => other.zoom(range));
    return lineChart({ ...chart, lines, xName: "update", xText: null }, { smoothing: 0, log: false }, zoomed);
  });
  figures.forEach((figure) => sight.observe(figure));
  const legend = stage.arms.map((arm, i) => h("span", { class: "toggle" }, key(i), arm));
  return [h("h3", {}, stage.name), h("div", { class: "legend" }, legend), h("div", { class: "grid" }, figures)];
}

async function drawCurves() {
  const place = document.getElementById("curves");
  try {
    fill(place, (await piece("curves")).map(stageCharts));
  } catch (error) {
    fill(place, h("p", { class: "absent" }, `The curves cannot be read: ${error.message}`));
  }
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  colours.clear();
  for (const state of charts) state.drawn.redraw(false);
});
drawCurves();
