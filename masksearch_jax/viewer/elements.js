// Building the page: every text goes in as text, never as markup.

/**
 * An element. `attributes`: `on…` are listeners, booleans set or leave out, others are as in HTML.
 * Children: elements, texts, lists of these; null and false are left out.
 */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") element.style.cssText = value;
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
}

function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

const controlsOf = (element, name) =>
  [...element.querySelectorAll("button, select, input, summary")].filter((e) => controlName(e) === name);
const controlName = (e) => e.getAttribute("aria-label") ?? e.textContent;

/** Draws an element anew. Where a control in it has the focus, the one in its place gets it. */
function keepingFocus(element, draw) {
  const held = document.activeElement;
  const name = element.contains(held) ? controlName(held) : null;
  const place = name === null ? -1 : controlsOf(element, name).indexOf(held);
  draw();
  if (place >= 0) controlsOf(element, name)[place]?.focus({ preventScroll: true });
}

/** A field with its label: `select(label, [[value, text], …], value, listener)`. */
function select(label, options, value, onchange) {
  const list = h("select", { "aria-label": label, onchange: (e) => onchange(e.target.value) });
  for (const [key, text] of options) list.append(h("option", { value: key, selected: String(key) === String(value) }, text));
  return h("label", { class: "field" }, h("span", {}, label), list);
}

function checkbox(label, checked, onchange, disabled = false) {
  const box = h("input", { type: "checkbox", checked, disabled, onchange: (e) => onchange(e.target.checked) });
  return h("label", { class: "check" }, box, label);
}

function button(text, onclick, attributes = {}) {
  return h("button", { type: "button", onclick, ...attributes }, text);
}

/** A table in a region that scrolls sideways by itself. Cells: text, or elements. */
function table(label, head, rows, kind = "") {
  const cell = (tag, content, i) => {
    const scope = tag === "th" ? "col" : null;
    return h(tag, { scope, class: i ? "num" : null }, content);
  };
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    h(
      "table",
      { class: kind },
      h("thead", {}, h("tr", {}, head.map((c, i) => cell("th", c, i)))),
      h("tbody", {}, rows),
    ),
  );
}

/** A row of a table: its first cell heads it. */
function row(first, cells, kind = null) {
  return h(
    "tr",
    { class: kind },
    h("th", { scope: "row" }, first),
    cells.map((c) => h("td", { class: "num" }, c)),
  );
}

/** A value with its interval beneath. */
function estimate(cell, digits = 3) {
  if (!cell) return h("span", { class: "faint" }, ABSENT);
  const [value, low, high, n] = cell;
  const interval = low === null || high === null ? "" : `${score(low, digits)}–${score(high, digits)}`;
  const title = n === null ? null : `${value}, ${plural(n, "item")}`;
  return h("span", { class: "estimate", title }, score(value, digits), h("small", {}, interval));
}

/** An interval drawn to scale in a row: a bar from low to high, a dot at the value, in a colour. */
function interval(cell, least, most, colour_ = 0) {
  const at = (x) => `${(100 * (x - least)) / (most - least || 1)}%`;
  const [value, low, high] = cell;
  const bar = low === null ? null : h("i", { class: "bar", style: `left:${at(low)};right:calc(100% - ${at(high)})` });
  const zero = least < 0 && most > 0 ? h("i", { class: "zero", style: `left:${at(0)}` }) : null;
  return h("span", { class: "interval", "aria-hidden": "true", style: `--own:var(--c${colour_ % PALETTE})` }, zero, bar, h("i", { class: "dot", style: `left:${at(value)}` }));
}

async function copy(text, source) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const before = source.textContent;
  source.textContent = "Copied";
  setTimeout(() => (source.textContent = before), 1200);
}

function download(name, value) {
  const file = new Blob([JSON.stringify(value, null, 1)], { type: "application/json" });
  const link = h("a", { href: URL.createObjectURL(file), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
