// Numbers and names as text: the one place that decides units and digits.

const ABSENT = "–";

/** A number: integers in groups of three, others to `digits` decimals, tiny ones to digits. */
function number(value, digits = 3) {
  if (value === true) return "yes";
  if (value === false) return "no";
  if (value === null || value === undefined) return ABSENT;
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size < 10 ** (1 - digits)) return value.toExponential(1).replace("e+", "e").replace(".0e", "e");
  return value.toFixed(size >= 100 ? 1 : size >= 10 ? Math.min(2, digits) : digits);
}

/** A share or score, always with the same decimals so that a column lines up. */
function score(value, digits = 3) {
  return typeof value === "number" ? value.toFixed(digits) : ABSENT;
}

function signed(value, digits = 3) {
  if (typeof value !== "number") return ABSENT;
  const text = Math.abs(value).toFixed(digits);
  return +text === 0 ? text : (value < 0 ? "−" : "+") + text;
}

/** A duration: 0.42 s, 12.3 s, 9 min 42 s, 2 h 05 min. */
function duration(value) {
  if (typeof value !== "number") return ABSENT;
  if (value < 59.95) return value < 10 ? `${value.toFixed(2)} s` : `${value.toFixed(1)} s`;
  const minutes = Math.floor(Math.round(value) / 60);
  const two = (n) => String(n).padStart(2, "0");
  if (minutes < 60) return `${minutes} min ${two(Math.round(value) % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${two(minutes % 60)} min`;
}

function bytes(value) {
  if (typeof value !== "number") return ABSENT;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${value.toFixed(unit ? 2 : 0)} ${units[unit]}`;
}

/** A number whose key tells its unit: `…seconds`, `…bytes`, or none. */
function quantity(key, value) {
  if (key.endsWith("seconds")) return duration(value);
  return key.endsWith("bytes") ? bytes(value) : number(value);
}

function plural(count, noun) {
  const many = noun.endsWith("ch") ? `${noun}es` : noun.endsWith("y") ? `${noun.slice(0, -1)}ies` : `${noun}s`;
  return `${number(count)} ${count === 1 ? noun : many}`;
}

function words(key) {
  return key.replaceAll("_", " ");
}

/** The name of a key of the tables that Python wrote: suites, methods, scores, statuses. */
function named(table, key) {
  return report.main.names[table][key] ?? words(String(key));
}

/** Where something stands: run, folder in it, of several runs the run's name first. */
function placeName(entry) {
  const run = report.main.runs[entry.run].name;
  if (!entry.place) return run;
  return report.several ? `${run}: ${entry.place}` : entry.place;
}

/** Keys, those of a table of names first and in its order. */
function inOrder(table, keys) {
  const known = Object.keys(report.main.names[table]);
  const place = (key) => (known.includes(key) ? known.indexOf(key) : known.length);
  return [...new Set(keys)].sort((a, b) => place(a) - place(b));
}

/** The measure that a suite is read by. */
function mainScore(suite, keys) {
  const known = [report.main.metrics[suite], ...Object.keys(report.main.names.scores)];
  return known.find((k) => keys.includes(k)) ?? keys[0];
}
