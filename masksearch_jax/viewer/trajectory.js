// One trajectory: read turn by turn, or token by token as the policy saw it.

const AUTHORS = { prompt: "prompt", policy: "policy", tool: "search tool" };
const SAID_BY = { ...AUTHORS, correction: "correction" }; // of segments; the tokens of a correction are as a tool's
const tags = (tools) => new RegExp(`<(think|${tools.join("|")}|information|answer)>([\\s\\S]*?)</\\1>`, "g");
const MANY_TOKENS = 3000; // shown at once; the others on demand

async function openTrajectory(index, isAsked = true) {
  const entry = report.main.rows[index];
  list.open = index;
  if (isAsked) {
    // The first one that is opened from the list is a step of its history, further ones are not.
    const isRead = location.hash.startsWith("#t-");
    if (isRead) history.replaceState(history.state, "", `#t-${entry.id}`);
    else history.pushState({ isFromList: true }, "", `#t-${entry.id}`);
    list.panes.classList.add("reading");
  }
  drawRows();
  const text = await textOf(index);
  if (list.open !== index) return; // another was opened since
  fill(list.detail, trajectoryParts(index, entry, text));
  list.detail.scrollTop = 0;
  if (isAsked) list.detail.focus({ preventScroll: true });
  if (isAsked && !matchMedia("(min-width: 900px)").matches) scrollTo(0, 0);
  list.detail.onkeydown = (event) => detailKeys(event);
}

/** Back to the list, in the browser's history too. */
function closeTrajectory() {
  leaveTrajectory();
  if (history.state?.isFromList) history.back();
  else history.replaceState(null, "", "#trajectories");
}

function leaveTrajectory() {
  list.panes.classList.remove("reading");
  moveRow(0);
  list.box.focus();
}

/** Says in the place of a trajectory that there is none of this name. */
function showMissing(name) {
  list.open = undefined;
  list.panes.classList.add("reading");
  const why = "It is of another report, or beyond those that this one holds.";
  fill(list.detail, h("div", { class: "actions" }, button("← List", closeTrajectory, { class: "back" })), h("p", { class: "absent", role: "status" }, `There is no trajectory #${name} here. ${why}`));
  list.detail.onkeydown = (event) => detailKeys(event);
}

function detailKeys(event) {
  const isWithin = event.target !== list.detail && event.key !== "Escape";
  if (isWithin || event.ctrlKey || event.metaKey) return;
  if (event.key === "Escape") closeTrajectory();
  else if (event.key === "j" || event.key === "ArrowRight") step(1);
  else if (event.key === "k" || event.key === "ArrowLeft") step(-1);
  else return;
  event.preventDefault();
}

/** Opens the next one of the list, or the one before. */
function step(by) {
  if (!list.found.length) return;
  moveRow(by);
  openTrajectory(list.found[list.at]);
}

function trajectoryParts(index, entry, text) {
  const group = report.groups[entry.of];
  const facts = [named("statuses", entry.status || "status unknown"), plural(entry.searches, "search")];
  if (entry.masks) facts.push(plural(entry.masks, "mask"));
  if (!entry.well_formed) facts.push("not well-formed");
  if (text.seconds) facts.push(duration(text.seconds));
  if (text.versions) facts.push(`policy version ${[...new Set(text.versions)].join("–")}`);
  if (text.step !== undefined) facts.push(`step ${text.step}`);
  if (text.trained === false) facts.push("its group was not trained on");
  if (entry.group) facts.push(h("a", { href: "#trajectories", onclick: () => showGroup(entry.group) }, `group ${entry.group}`));
  const where = [named("suites", group.suite), named("methods", group.method), placeName(group)].filter(Boolean).join(" · ");
  return [
    h(
      "div",
      { class: "actions" },
      button("← List", closeTrajectory, { class: "back" }),
      button("Previous", () => step(-1), { "aria-keyshortcuts": "k" }),
      button("Next", () => step(1), { "aria-keyshortcuts": "j" }),
      h("span", { class: "gap" }),
      button("Copy link", (e) => copy(`${location.href.split("#")[0]}#t-${entry.id}`, e.target)),
      button("Copy text", (e) => copy(asText(text), e.target)),
      button("Download JSON", () => downloadTrajectory(index, entry, text)),
    ),
    h("h2", { dir: "auto" }, entry.title || text.example_id),
    h("p", { class: "faint" }, `${where} · ${text.example_id}`),
    h("p", {}, facts.flatMap((f, i) => (i ? [" · ", f] : [f]))),
    scoreList(text),
    verdictList(text),
    answerPart(text),
    h("section", {}, h("h3", {}, "What happened"), pieceList(text)),
    tokenPart(index, text, group),
  ];
}

function showGroup(group) {
  list.filters = { ...NO_FILTERS, group };
}

function scoreList(text) {
  const pairs = [
    ...Object.entries(text.scores).map(([k, v]) => [named("scores", k), v]),
    ...Object.entries(text.reward).map(([k, v]) => [`reward: ${words(k)}`, v]),
  ];
  if (typeof text.advantage === "number") pairs.push(["advantage", text.advantage]);
  if (!pairs.length) return null;
  return h("dl", { class: "scores" }, pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", { title: String(value) }, number(value)))));
}

/** What judges said of the answer. */
function verdictList(text) {
  const told = (text.verdicts ?? []).map(([judge, verdict_]) => h("div", {}, h("dt", {}, `judged by ${judge}`), h("dd", {}, verdict_ || "no reply")));
  return told.length > 0 && h("dl", { class: "scores" }, told);
}

// ---- the answer against the reference

function answerPart(text) {
  const { example, wanted, answer } = text;
  const said = answer === null ? h("span", { class: "absent" }, "none") : marked(answer, wanted);
  const hasFills = wanted.some((w) => "fill" in w);
  const reference = example.paragraph
    ? marked(example.paragraph, wanted)
    : wanted.length ? wanted.map((w, i) => [i ? " · " : "", h("mark", { class: "gold" }, w.text)]) : h("span", { class: "absent" }, "not known");
  return h(
    "section",
    {},
    h("h3", {}, "Answer"),
    h("dl", { class: "answer" }, h("dt", {}, "answer"), h("dd", { dir: "auto" }, said), h("dt", {}, "reference"), h("dd", { dir: "auto" }, reference)),
    hasFills && table("Masks", ["mask", "wanted", "answered", ""], wanted.map((w, i) =>
      row(`${i + 1} ${w.type ? words(w.type).toLowerCase() : ""}`, [
        h("span", { dir: "auto" }, w.text),
        h("span", { dir: "auto", class: w.fill === null ? "absent" : null }, w.fill ?? "not found"),
        verdict(w),
      ])), "fills"),
  );
}

/** Whether a mask was filled as wanted, else how much of it. */
function verdict(wanted) {
  if (wanted.is_right) return h("span", { class: "right" }, "✓ right");
  return wanted.recall > 0 ? `recall ${score(wanted.recall, 2)}` : h("span", { class: "wrong" }, "✗ wrong");
}

/** Text with masks boxed and every wanted text marked where it stands as whole words. */
function marked(text, wanted) {
  const texts = [...new Set(wanted.map((w) => w.text).filter((t) => t.trim()))].sort((a, b) => b.length - a.length);
  const escaped = texts.map((t) => `(?<![\\p{L}\\p{N}_])${t.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}(?![\\p{L}\\p{N}_])`);
  const pattern = new RegExp([String.raw`\[mask\]`, ...escaped].join("|"), "gu");
  const parts = [];
  let at = 0;
  for (const match of text.matchAll(pattern)) {
    parts.push(text.slice(at, match.index), h("mark", { class: match[0] === "[mask]" ? "mask" : "gold" }, match[0]));
    at = match.index + match[0].length;
  }
  return [...parts, text.slice(at)];
}

// ---- turn by turn

/** Segments cut at the grammar's blocks, in order; text outside any block stays a piece. */
function cut(text) {
  const turns = text.turns.values();
  return text.segments.flatMap(([author, said]) => {
    const turn = author === "tool" ? turns.next().value : undefined;
    if (author === "prompt") return [{ author, tag: "prompt", text: said }];
    const found = [];
    let at = 0;
    for (const match of said.matchAll(tags(text.tools ?? ["search"]))) {
      found.push({ author, tag: "", text: said.slice(at, match.index) }, { author, tag: match[1], text: match[2], turn });
      at = match.index + match[0].length;
    }
    found.push({ author, tag: "", text: said.slice(at) });
    return found.filter((piece) => piece.tag || piece.text.trim());
  });
}

const TITLES = { prompt: "prompt", think: "thought", search: "search", information: "found", answer: "answer" };

function pieceList(text) {
  return h("ol", { class: "pieces" }, cut(text).map((part) =>
    h(
      "li",
      { class: `piece ${part.author === "correction" ? "tool" : part.author}` },
      h("span", { class: "tag" }, part.author === "correction" ? SAID_BY.correction : (TITLES[part.tag] ?? (part.tag || SAID_BY[part.author]))),
      part.turn ? documents(part, text.wanted) : h("div", { class: "text", dir: "auto" }, part.author === "prompt" ? marked(part.text.trim(), []) : marked(part.text.trim(), text.wanted)),
    )));
}

function documents(part, wanted) {
  const { turn } = part;
  const note = [turn.tool ?? plural(turn.documents.length, "document")];
  if (turn.seconds !== undefined) note.push(turn.seconds < 1 ? `${Math.round(1000 * turn.seconds)} ms` : duration(turn.seconds));
  return [
    h("p", { class: "note" }, note.join(" in ")),
    turn.answered_by && h("p", { class: "note" }, `answered by ${turn.answered_by.join(", ")}`),
    turn.error && h("p", { class: "note error" }, turn.error),
    turn.documents.length
      ? turn.documents.map((d) =>
          h(
            "div",
            { class: `document ${d.kind}` },
            h("p", {}, h("b", { dir: "auto" }, d.title || d.id), d.kind && h("span", { class: "badge" }, d.kind === "source" ? "source passage" : "gold"), h("small", {}, d.id)),
            h("div", { class: "text", dir: "auto" }, marked(d.text, wanted)),
          ))
      : h("div", { class: "text" }, part.text),
  ];
}

function asText(text) {
  return text.segments.map(([author, said]) => `[${SAID_BY[author]}]\n${said.trim()}`).join("\n\n");
}

async function downloadTrajectory(index, entry, text) {
  const group = report.groups[entry.of];
  const { id, status } = entry;
  const origin = { id, run: report.main.runs[group.run].name, from: group.place, suite: group.suite, method: group.method, status };
  download(`trajectory-${id}.json`, { ...origin, ...text, ...(await tokensOf(index)) });
}

// ---- token by token

const COLOURINGS = {
  author: "who wrote it",
  loss: "loss mask",
  logprobs: "logprob of the sampler",
  trainer_logprobs: "logprob of the trainer",
  gap: "trainer less sampler",
  advantages: "advantage",
};

function tokenPart(index, text, group) {
  const body = h("div", {});
  const part = h("details", { class: "tokens" }, h("summary", {}, h("h3", {}, "Tokens")), body);
  part.addEventListener("toggle", async () => {
    if (!part.open || body.firstChild) return;
    const columns = await tokensOf(index);
    append(body, columns ? tokenView(columns, text, group) : [h("p", { class: "absent" }, "No tokens were stored.")]);
  });
  return part;
}

/**
 * The columns with what follows from them: author of each token, and the gap of both logprobs.
 * `loss`: of what is trained on; an evaluation trains nothing.
 */
function completed(columns, text, group) {
  const { sampled, logprobs, trainer_logprobs: trainer } = columns;
  const mine = (values) => sampled.map((m, i) => (m ? values(i) : null));
  const advantages = columns.advantages ?? (typeof text.advantage === "number" ? mine(() => text.advantage) : undefined);
  const counts = text.trained !== false && !["tool_failure", "out_of_time"].includes(text.status);
  return {
    ...columns,
    author: sampled.map((m, i) => (i < (text.prompt_len ?? 0) ? "prompt" : m ? "policy" : "tool")),
    loss: group.method && group.method !== "rollout" ? undefined : sampled.map((m) => m && counts),
    gap: trainer && logprobs ? mine((i) => trainer[i] - logprobs[i]) : undefined,
    advantages,
  };
}

function tokenView(given, text, group) {
  const columns = completed(given, text, group);
  const readout = h("p", { class: "readout", "aria-live": "polite" }, "Point at a token, or move by the arrow keys.");
  const stream = h("div", { class: "stream", tabindex: "0", role: "group", "aria-label": "Tokens" });
  const state = { columns, stream, readout, at: -1, colouring: "author", shown: MANY_TOKENS };
  const known = Object.entries(COLOURINGS).filter(([name]) => columns[name]);
  const count = (author) => columns.author.filter((a) => a === author).length;
  const key_ = h("p", { class: "legend" }, Object.keys(AUTHORS).map((a) => h("span", { class: `swatch ${a}` }, `${number(count(a))} ${AUTHORS[a]}`)));
  stream.addEventListener("pointerover", (e) => tokenAt(state, e.target));
  stream.addEventListener("click", (e) => tokenAt(state, e.target));
  stream.addEventListener("keydown", (e) => tokenKeys(state, e));
  drawTokens(state);
  return [h("div", { class: "controls" }, select("Colour", known, "author", (v) => { state.colouring = v; drawTokens(state); })), key_, readout, stream];
}

function drawTokens(state) {
  const { columns, stream } = state;
  const length = Math.min(columns.ids.length, state.shown);
  const shown = Array.from({ length }, (_, i) => tokenElement(state, i));
  const left = columns.ids.length - length;
  const more = left > 0 && button(`Show ${plural(left, "more token")}`, () => { state.shown = Infinity; drawTokens(state); });
  fill(stream, shown, more);
}

function tokenElement(state, i) {
  const { columns, colouring } = state;
  const text = columns.texts[i] ?? `⟨${columns.ids[i]}⟩`;
  const lines = text.split("\n");
  // A line break is shown as a sign and also taken, so that the text keeps its lines.
  const body = lines.flatMap((line, n) => (n ? [h("i", { class: "nl" }, "↵"), "\n", line] : [line]));
  return h("span", { class: `t ${tokenClass(columns, colouring, i)}`, style: tokenStyle(columns, colouring, i), "data-i": i }, body);
}

function tokenClass(columns, colouring, i) {
  if (colouring === "author") return columns.author[i];
  if (colouring === "loss") return columns.loss[i] ? "policy" : "out";
  return columns[colouring][i] === null ? "out" : "shaded";
}

/** A shade by value: of logprobs how surprising a token was, of signed ones warm below 0. */
function tokenStyle(columns, colouring, i) {
  const value = columns[colouring]?.[i];
  if (typeof value !== "number") return null;
  const isSigned = colouring === "gap" || colouring === "advantages";
  const most = colouring === "gap" ? 0.5 : colouring === "advantages" ? 2 : 5;
  const share = Math.min(1, Math.abs(value) / most);
  const hue = isSigned && value > 0 ? "--good" : isSigned ? "--bad" : "--policy";
  return `background:color-mix(in srgb, var(${hue}) ${Math.round(8 + 62 * share)}%, var(--panel))`;
}

function tokenAt(state, element) {
  const found = element.closest?.("[data-i]");
  if (found) showToken(state, +found.dataset.i);
}

function tokenKeys(state, event) {
  const last = Math.min(state.columns.ids.length, state.shown) - 1;
  const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -Infinity, End: Infinity };
  if (!(event.key in moves)) return;
  showToken(state, Math.max(0, Math.min(last, state.at + moves[event.key])));
  state.stream.children[state.at].scrollIntoView({ block: "nearest" });
  event.preventDefault();
}

function showToken(state, i) {
  const { columns, stream, readout } = state;
  stream.children[state.at]?.classList.remove("now");
  state.at = i;
  stream.children[i].classList.add("now");
  const facts = [`position ${i}`, `id ${columns.ids[i]}`, AUTHORS[columns.author[i]]];
  if (columns.loss) facts.push(columns.loss[i] ? "in the loss" : "not in the loss");
  for (const name of ["logprobs", "trainer_logprobs", "gap", "advantages"]) {
    if (typeof columns[name]?.[i] === "number") facts.push(`${COLOURINGS[name]} ${columns[name][i].toFixed(4)}`);
  }
  fill(readout, h("code", {}, JSON.stringify(columns.texts[i] ?? "")), ` ${facts.join(" · ")}`);
}
