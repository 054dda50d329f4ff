"use strict";
// The page's data: pieces of JSON, packed by gzip and written in base64, each unpacked once.

const pieces = new Map();
const wholePage = new Promise((read) => document.addEventListener("DOMContentLoaded", read));

/** A promise of the piece `data-NAME`. */
function piece(name) {
  if (!pieces.has(name)) pieces.set(name, unpack(`data-${name}`));
  return pieces.get(name);
}

async function unpack(id) {
  if (!document.getElementById(id)) await wholePage;
  const element = document.getElementById(id);
  const packed = Uint8Array.from(atob(element.textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

/** What the whole page shares: the main piece, and what follows from it. */
const report = { main: null };

async function openData() {
  report.main = await piece("main");
  report.groups = report.main.groups;
  report.several = report.main.runs.length > 1;
}

/** The text of the trajectory at `index` of the list: turns, answer, scores. */
async function textOf(index) {
  const size = report.main.sizes.texts;
  return (await piece(`texts-${Math.floor(index / size)}`))[index % size];
}

/** The tokens of a trajectory as columns of equal length, null where none were stored. */
async function tokensOf(index) {
  const size = report.main.sizes.tokens;
  const { table, rows } = await piece(`tokens-${Math.floor(index / size)}`);
  const row = rows[index % size];
  if (!row) return null;
  const sampled = row.sampled.flatMap((length, i) => Array(length).fill(i % 2 === 1));
  const columns = {
    ids: row.tokens.map((t) => table[t][0]),
    texts: row.tokens.map((t) => table[t][1]),
    sampled,
  };
  for (const name of ["logprobs", "trainer_logprobs", "advantages"]) {
    if (!row[name]) continue;
    let next = 0;
    columns[name] = sampled.map((mine) => (mine ? row[name][next++] : null));
  }
  return columns;
}

/** The lower-case text of every trajectory, for the search; unpacked when first asked for. */
let haystacks = null;
function searchable() {
  haystacks ??= (async () => {
    const found = [];
    for (let i = 0; i < report.main.rows.length; i++) {
      const text = await textOf(i);
      const parts = [text.example_id, ...text.segments.map((s) => s[1])];
      parts.push(...text.wanted.map((w) => w.text), text.example.question ?? "");
      found.push(parts.join("\n").toLowerCase());
    }
    return found;
  })();
  return haystacks;
}
