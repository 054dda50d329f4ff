// Line charts by uPlot: zoom by mouse, touch and keys, values on hover, focus and tap.

const PALETTE = 8; // colours --c0 … --c7 of the style
const colour = (i) => css(`--c${i % PALETTE}`);
const charts = new Set(); // those that are drawn now

/** A colour of the style as the canvas takes it; `colours` holds those of the present theme. */
const colours = new Map();
function css(name) {
  if (!colours.has(name)) {
    const probe = h("i", { style: `color:var(${name})` });
    document.body.append(probe);
    const [red, green, blue] = getComputedStyle(probe).color.match(/[\d.]+/g);
    const hex = [red, green, blue].map((c) => Math.round(+c).toString(16).padStart(2, "0")).join("");
    colours.set(name, `#${hex}`);
    probe.remove();
  }
  return colours.get(name);
}

/** An exponential mean, corrected for its start; gaps stay gaps. */
function smooth(values, weight) {
  if (!weight) return values;
  let mean = 0;
  let known = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return value;
    mean = weight * mean + (1 - weight) * value;
    known = weight * known + 1 - weight;
    return mean / known;
  });
}

/** Lines over one x axis: [x, values of each line …], null where a line has no value. */
function aligned(lines, options) {
  const positive = (v) => (options.log && !(v > 0) ? null : v);
  const tables = lines.map((line) => {
    const columns = [line.x, smooth(line.y, options.smoothing).map(positive)];
    if (options.smoothing) columns.push(line.y.map(positive));
    if (line.low) columns.push(line.low.map(positive), line.high.map(positive));
    return columns;
  });
  return uPlot.join(tables);
}

/** The series and the bands that `aligned` has columns for. */
function drawnLines(lines, options) {
  const series = [{}];
  const bands = [];
  for (const line of lines) {
    const stroke = () => colour(line.colour);
    const faint = () => `${colour(line.colour)}55`;
    const few = line.x.length <= 40;
    series.push({ label: line.label, stroke, width: 1.75, spanGaps: true, points: { show: few, size: 5, fill: stroke } });
    if (options.smoothing) series.push({ stroke: faint, width: 1, spanGaps: true, points: { show: false } });
    if (line.low) {
      const edge = { stroke: faint, width: 1, spanGaps: true, points: { show: false } };
      series.push(edge, { ...edge });
      bands.push({ series: [series.length - 1, series.length - 2], fill: () => `${colour(line.colour)}22` });
    }
  }
  return { series, bands };
}

/**
 * A chart as a figure, drawn when it comes into sight.
 * chart: {title, unit, note, xName, xText, lines: [{label, colour, x, y, low, high, marks}]};
 * options: {smoothing, log}; zoomed: told of the x range that the reader chooses, null for all.
 */
function lineChart(chart, options, zoomed) {
  const readout = h("p", { class: "readout", "aria-live": "polite" });
  const plot = h("div", { class: "plot", tabindex: "0", role: "img", "aria-label": described(chart) });
  const figure = h(
    "figure",
    { class: "chart" },
    h("figcaption", {}, h("b", {}, chart.title), chart.unit && h("small", {}, chart.unit)),
    plot,
    readout,
    chart.note && h("p", { class: "faint" }, chart.note),
  );
  const state = { chart, options, zoomed, readout, plot, range: null, drawn: null };
  figure.draw = () => state.drawn || drawInto(state);
  figure.zoom = (range) => setRange(state, range);
  figure.remove_ = () => {
    charts.delete(state);
    state.drawn?.destroy();
  };
  rest(state);
  return figure;
}

function described(chart) {
  const said = chart.lines.map((line) => {
    const known = line.y.filter((v) => v !== null);
    const ends = `${number(known[0])} at first, ${number(known.at(-1))} at last`;
    return `${line.label}: ${ends}, lowest ${number(Math.min(...known))}, highest ${number(Math.max(...known))}`;
  });
  return `${chart.title}. ${said.join("; ")}. Arrow keys read values, plus and minus zoom.`;
}

function drawInto(state) {
  const { chart, options, plot } = state;
  const { series, bands } = drawnLines(chart.lines, options);
  state.data = aligned(chart.lines, options);
  const read = () => state.drawn.cursor.idx ?? moveTo(state, state.data[0].length - 1);
  const axis = { stroke: () => css("--soft"), grid: { stroke: () => css("--grid"), width: 1 }, ticks: { stroke: () => css("--grid"), width: 1 } };
  const font = "12px system-ui, sans-serif";
  state.drawn = new uPlot(
    {
      width: plot.clientWidth || 320,
      height: 190,
      padding: [8, 18, 0, 0],
      legend: { show: false },
      scales: { x: { time: false }, y: { distr: options.log ? 3 : 1, range: options.log ? undefined : yRange } },
      axes: [
        { ...axis, font, size: 30, space: 60, values: (_, ticks) => ticks.map(chart.xText ?? shortTick) },
        { ...axis, font, size: 52, values: (_, ticks) => ticks.map((t) => (t === null ? "" : shortTick(t))) },
      ],
      cursor: { points: { size: 7 }, drag: { x: true, y: false, setScale: true } },
      series,
      bands,
      hooks: {
        setCursor: [() => readAt(state)],
        draw: [(u) => drawMarks(u, chart.lines)],
        setScale: [(u, key) => key === "x" && told(state, u)],
        ready: [() => document.activeElement === plot && read()], // it had the focus before it was drawn
      },
    },
    state.data,
    plot,
  );
  charts.add(state);
  plot.addEventListener("keydown", (event) => keyed(state, event));
  plot.addEventListener("focus", read);
  plot.addEventListener("blur", () => rest(state));
  plot.addEventListener("mouseleave", () => document.activeElement === plot || rest(state));
  touched(state);
  new ResizeObserver(() => plot.clientWidth && state.drawn.setSize({ width: plot.clientWidth, height: 190 })).observe(plot);
  if (state.range) setRange(state, state.range);
}

/** A tick: 0, 0.25, 300, 15k, 3e-4. */
function shortTick(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toFixed(2)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toFixed(1)}k`;
  if (size && size < 1e-3) return value.toExponential(0).replace("e+", "e");
  return String(+value.toFixed(4));
}

/** Values with some room, and a flat curve in the middle; what is never negative begins at 0. */
function yRange(u, low, high) {
  if (low === null) return [0, 1];
  if (low === high) return [low - (Math.abs(low) * 0.1 || 1), high + (Math.abs(high) * 0.1 || 1)];
  const pad = (high - low) * 0.08;
  return [low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
}

/** Where a line's training comes to its next mixture, or an alarm begins, as dashed lines. */
function drawMarks(u, lines) {
  const { ctx, bbox } = u;
  const ratio = uPlot.pxRatio;
  ctx.save();
  ctx.font = `${10.5 * ratio}px system-ui, sans-serif`;
  ctx.textAlign = "left";
  ctx.textBaseline = "alphabetic";
  ctx.setLineDash([3 * ratio, 3 * ratio]);
  for (const line of lines) {
    for (const [x, label] of line.marks ?? []) {
      if (x <= u.scales.x.min || x >= u.scales.x.max) continue;
      const at = u.valToPos(x, "x", true);
      ctx.strokeStyle = ctx.fillStyle = colour(line.colour);
      ctx.globalAlpha = 0.75;
      ctx.beginPath();
      ctx.moveTo(at, bbox.top);
      ctx.lineTo(at, bbox.top + bbox.height);
      ctx.stroke();
      ctx.fillText(label, at + 4 * ratio, bbox.top + 10 * ratio);
    }
  }
  ctx.restore();
}

// ---- values

function readAt(state) {
  const { drawn, data, chart, readout } = state;
  const index = drawn?.cursor.idx;
  if (index === null || index === undefined || drawn.cursor.left < 0) return;
  const x = data[0][index];
  const at = chart.xText ? chart.xText(x) : number(x);
  const parts = [`${chart.xName} ${at}`];
  let column = 1;
  for (const line of chart.lines) {
    const value = nearest(data[column], index, data[0], x, line.x);
    if (value !== null) parts.push(h("span", {}, key(line.colour), `${chart.lines.length > 1 ? `${line.label} ` : ""}`, h("b", {}, number(value, 4))));
    column += 1 + (state.options.smoothing ? 1 : 0) + (line.low ? 2 : 0);
  }
  readout.classList.add("live");
  fill(readout, parts);
}

/** The value at an index, else of the nearest x of the line itself, if it reaches that far. */
function nearest(values, index, xs, x, own) {
  if (x < own[0] || x > own.at(-1)) return null;
  for (let away = 0; away < xs.length; away++) {
    for (const i of [index - away, index + away]) {
      if (values[i] !== null && values[i] !== undefined) return values[i];
    }
  }
  return null;
}

/** Without a cursor: the last value of each line. */
function rest(state) {
  state.readout.classList.remove("live");
  const { lines } = state.chart;
  const last = (line) => line.y.findLast((v) => v !== null && v !== undefined);
  fill(
    state.readout,
    "last",
    lines.map((line) => h("span", {}, key(line.colour), h("b", {}, number(last(line), 4)))),
  );
  state.drawn?.setCursor({ left: -10, top: -10 }, false);
}

function key(i) {
  return h("i", { class: "key", style: `background:var(--c${i % PALETTE})` });
}

function moveTo(state, index) {
  const { drawn, data } = state;
  const x = data[0][Math.max(0, Math.min(index, data[0].length - 1))];
  drawn.setCursor({ left: drawn.valToPos(x, "x"), top: drawn.over.clientHeight / 2 });
}

// ---- zoom

function keyed(state, event) {
  const u = state.drawn;
  const index = u.cursor.idx ?? 0;
  const far = event.shiftKey ? 10 : 1;
  const moves = { ArrowLeft: index - far, ArrowRight: index + far, Home: 0, End: state.data[0].length - 1 };
  if (event.key in moves) moveTo(state, moves[event.key]);
  else if (event.key === "+" || event.key === "=") zoomAbout(state, state.data[0][index], 0.5);
  else if (event.key === "-") zoomAbout(state, state.data[0][index], 2);
  else if (event.key === "Escape" || event.key === "0") choose(state, null);
  else return;
  event.preventDefault();
}

function zoomAbout(state, x, factor) {
  const { min, max } = state.drawn.scales.x;
  const all = state.data[0];
  const low = Math.max(all[0], x - (x - min) * factor);
  const high = Math.min(all.at(-1), x + (max - x) * factor);
  if (high > low) choose(state, low === all[0] && high === all.at(-1) ? null : [low, high]);
}

/** The reader's choice of a range; the other charts hear of it. */
function choose(state, range) {
  setRange(state, range);
  state.zoomed(range);
}

function setRange(state, range) {
  state.range = range;
  if (!state.drawn) return;
  const all = state.data[0];
  const [min, max] = range ?? [all[0], all.at(-1)];
  if (min === max) return;
  state.quiet = true;
  state.drawn.setScale("x", { min, max });
  queueMicrotask(() => (state.quiet = false));
}

/** A range that uPlot set itself, by a drag or a double click. */
function told(state, u) {
  if (state.quiet || !state.drawn) return;
  const { min, max } = u.scales.x;
  const all = state.data[0];
  const range = min <= all[0] && max >= all.at(-1) ? null : [min, max];
  if (String(range) === String(state.range)) return;
  state.range = range;
  state.zoomed(range);
}

/** One finger reads values along the curve, two zoom, a second tap at once shows all again. */
function touched(state) {
  const { over } = state.drawn;
  const fingers = new Map();
  let spread = 0;
  let tapped = 0;
  const at = (event) => event.clientX - over.getBoundingClientRect().left;
  over.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse") return;
    fingers.set(event.pointerId, at(event));
    spread = 0;
    if (fingers.size > 1) return;
    if (event.timeStamp - tapped < 300) choose(state, null);
    tapped = event.timeStamp;
    state.drawn.setCursor({ left: at(event), top: 10 });
  });
  over.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) return;
    fingers.set(event.pointerId, at(event));
    if (fingers.size === 1) return state.drawn.setCursor({ left: at(event), top: 10 });
    const [a, b] = fingers.values();
    const now = Math.abs(a - b);
    if (spread && now) zoomAbout(state, state.drawn.posToVal((a + b) / 2, "x"), spread / now);
    spread = now;
  });
  for (const end of ["pointerup", "pointercancel"]) {
    over.addEventListener(end, (event) => fingers.delete(event.pointerId));
  }
}
