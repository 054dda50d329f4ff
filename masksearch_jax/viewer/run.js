// The views of the whole: what came out, where the time and the data went, what made it.

function overview() {
  const { runs } = report.main;
  return [
    h("h1", {}, report.several ? "Runs compared" : runs[0].name),
    runs.map((run) => runLine(run)),
    runs.flatMap((run) => run.notes.map((note) => h("p", { class: "notes" }, note))),
    h("h2", {}, "What came out"),
    resultsTable(),
    report.main.evaluations.length > 0 && h("p", { class: "faint" }, "Bars from 0 to 1; small figures are 95% bootstrap intervals."),
    runs.flatMap(collapsed),
    runs.map((run) => [stageSection(run), dataSection(run), exportSection(run)]),
  ];
}

/** What self-evolution says of lost diversity, by iteration, and why it stopped. */
function collapsed(run) {
  const lines = run.iterations.flatMap((row) => (row.collapsed ?? []).map((line) => `Iteration ${row.iteration}: ${line}`));
  lines.push(...(run.summary.collapsed ?? []).map((line) => `Stopped: ${line}`));
  return lines.map((line) => h("p", { class: "notes" }, line));
}

function runLine(run) {
  const { wall_seconds: wall, peak_memory_bytes: memory } = run.summary;
  const trained = report.main.series.filter((s) => report.main.runs[s.run] === run).length;
  const facts = [];
  if (wall !== undefined) facts.push(["Whole run", duration(wall)]);
  if (memory !== undefined) facts.push(["Peak memory", bytes(memory)]);
  if (run.stages.length) facts.push(["Stages", number(run.stages.length)]);
  if (trained) facts.push(["Trainings", number(trained)]);
  const session = run.records[0]?.sessions.at(-1);
  if (session?.date) facts.push(["Last started", session.date.slice(0, 16).replace("T", " ")]);
  if (session?.commit) facts.push(["Commit", h("code", {}, session.commit.replace(/^(.{10})[0-9a-f]*/, "$1"))]);
  return [
    report.several && h("h3", {}, run.name),
    h("dl", { class: "facts-row" }, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
  ];
}

function runTitle(text, run) {
  return report.several ? `${text}: ${run.name}` : text;
}

function stageSection(run) {
  if (!run.stages.length) return null;
  const total = run.stages.reduce((sum, s) => sum + (s.seconds ?? 0), 0) || 1;
  let start = 0;
  return h(
    "section",
    {},
    h("h2", {}, runTitle("Where the time went", run)),
    h("ol", { class: "stages" }, run.stages.map((s) => {
      const seconds = s.seconds ?? 0;
      const bar = h("i", { style: `left:${(100 * start) / total}%;width:${(100 * seconds) / total}%` });
      start += seconds;
      const goodput = s.time.goodput;
      return h(
        "li",
        {},
        h("span", {}, s.name),
        h("span", { class: "track" }, bar),
        h("span", { class: "num" }, duration(s.seconds)),
        goodput !== undefined && h("small", {}, `${Math.round(100 * goodput)}% sampling and updating`),
      );
    })),
  );
}

function dataSection(run) {
  if (!run.data.length) return null;
  const rows = run.data.map((step) => row(step.name, [number(step.in), h("span", { class: "said" }, step.said, moreCounts(step.more))]));
  return h("section", {}, h("h2", {}, runTitle("Data", run)), table("Data", ["step", "read", "kept and left out"], rows, "data"));
}

function moreCounts(pairs) {
  return pairs.length > 0 && h("details", {}, h("summary", {}, "more"), pairs.map(([name, value]) => h("span", { class: "pair" }, `${name.replaceAll(".", " ")} `, h("b", {}, number(value)))));
}

function exportSection(run) {
  const found = Object.entries(run.summary.export ?? {}).filter(([, v]) => typeof v !== "object");
  if (!found.length) return null;
  const rows = found.map(([k, v]) => row(words(k.replace(/_bytes$|_seconds$/, "")), [k === "bytes" ? bytes(v) : quantity(k, v)]));
  return h("section", {}, h("h2", {}, runTitle("Export to Hugging Face format", run)), table("Export", ["", ""], rows, "pairs"));
}

// ---- what made it

const configState = { record: 0, find: "", decided: false };

function configView() {
  const records = report.main.runs.flatMap((run) => run.records.map((r) => ({ ...r, run })));
  if (!records.length) return [h("h1", {}, "Config"), h("p", { class: "absent" }, "No run.json says what made this.")];
  const body = h("div", {});
  const name = (r) => `${r.run.name}${r.place ? `: ${r.place}` : ""}`;
  const draw = () => drawConfig(body, records[configState.record] ?? records[0], records);
  draw();
  return [
    h("h1", {}, "Config and versions"),
    h(
      "div",
      { class: "controls" },
      records.length > 1 && select("Of", records.map((r, i) => [i, name(r)]), configState.record, (v) => { configState.record = +v; draw(); }),
      h("label", { class: "field" }, h("span", {}, "Key"), h("input", { type: "search", placeholder: "name or value", value: configState.find, oninput: (e) => { configState.find = e.target.value; draw(); } })),
      checkbox("Only what was decided", configState.decided, (v) => { configState.decided = v; draw(); }),
    ),
    body,
  ];
}

/** How a key came to its value: by the command, by the config file, or "" by its default. */
function decidedBy(record, name) {
  const isPart = (k) => name === k || name.startsWith(`${k}.`);
  if (record.given.some(isPart)) return "command line";
  return name in record.defaults ? "config file" : "";
}

function drawConfig(body, record, records) {
  const others = records.filter((r) => r !== record && r.place === record.place && r.run !== record.run);
  const find = configState.find.toLowerCase();
  const text = (v) => (v === "" ? "″″" : typeof v === "string" ? v : JSON.stringify(v));
  const rows = record.keys
    .filter(([k, v]) => `${k} ${text(v)}`.toLowerCase().includes(find))
    .filter(([k]) => !configState.decided || decidedBy(record, k))
    .map(([k, v]) => {
      const by = decidedBy(record, k);
      const differs = others.filter((r) => text(r.keys.find(([name]) => name === k)?.[1]) !== text(v));
      const standard = k in record.defaults ? text(record.defaults[k]) : "";
      const shown = differs.map((r) => h("small", {}, `${r.run.name}: ${text(r.keys.find(([name]) => name === k)?.[1] ?? "not there")}`));
      return row(h("code", {}, k), [h("code", {}, text(v)), standard && h("code", {}, standard), [by && h("span", { class: "badge" }, by), shown]], by ? "decided" : null);
    });
  fill(
    body,
    rows.length ? table("Config", ["key", "value", "default", ""], rows, "config") : h("p", { class: "absent" }, "No such key."),
    h("h2", {}, "Starts"),
    record.sessions.map(sessionPart),
  );
}

function sessionPart(session, i) {
  const versions = Object.entries(session.versions ?? {});
  return h(
    "section",
    { class: "session" },
    h("h3", {}, `${i + 1}. ${session.date ?? ""}`),
    session.command && h("pre", { tabindex: "0" }, session.command),
    h("p", {}, "Commit ", h("code", {}, session.commit || "not known")),
    (session.changed ?? []).length > 0 && h("p", { class: "notes" }, `Changed: ${session.changed.join("; ")}`),
    h("p", { class: "versions" }, versions.map(([name, v]) => h("span", { class: "pair" }, `${name} `, h("b", {}, v)))),
  );
}
