"use strict";
// What the agent says and reads goes into the page as text alone, never as markup.
const byId = (id) => document.getElementById(id);
const [form, question, send, turns] = ["form", "question", "send", "turns"].map(byId);
let model = "";
let stop = null; // while an answer comes

function add(parent, tag, name, text = "") {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  parent.append(made);
  return made;
}

function theme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  return document.documentElement.dataset.theme || dark;
}
try {
  const kept = localStorage.getItem("theme");
  if (kept) document.documentElement.dataset.theme = kept;
} catch { /* a browser that keeps nothing */ }
byId("theme").addEventListener("click", () => {
  const next = theme() === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try { localStorage.setItem("theme", next); } catch { /* as above */ }
});

function show(turn, delta) {
  if (delta.plan) {
    const last = turn.lastElementChild;
    (last.className === "plan" ? last : add(turn, "p", "plan")).append(delta.plan);
  }
  if (delta.note) add(turn, "p", "note", delta.note);
  if (delta.search) {
    const list = add(turn, "ul", "search");
    for (const query of delta.search) add(list, "li", "", query);
  }
  if (delta.call) {
    const list = add(turn, "ul", "search");
    for (const request of delta.call.requests) add(list, "li", "", `${delta.call.tool}: ${request}`);
  }
  if (delta.result !== undefined) add(turn, "p", "note", delta.result);
  if (delta.documents) {
    for (const found of delta.documents) {
      const place = add(turn, "details", "document");
      place.dataset.id = found.id;
      add(place, "summary", "", found.title || found.id);
      add(place, "p", "", found.text);
    }
    if (!delta.documents.length) add(turn, "p", "note", "Nothing found.");
  }
  if (delta.answer !== undefined) add(turn, "p", "answer", delta.answer);
  if (delta.failed) add(turn, "p", "failed", delta.failed);
  for (const cited of delta.citations || []) {
    if (!cited.has_answer) continue;
    for (const place of turn.querySelectorAll("details")) {
      if (place.dataset.id === cited.id) place.classList.add("has-answer");
    }
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

/** Brings the end of a turn into sight, above the form, which lies over the page's end. */
function follow(turn) {
  document.documentElement.style.scrollPaddingBottom = `${form.offsetHeight + 8}px`;
  turn.scrollIntoView({ block: "end" });
}

async function ask(text) {
  byId("hint")?.remove();
  const turn = add(turns, "article", "turn");
  add(turn, "h2", "", text);
  turn.setAttribute("aria-busy", "true");
  stop = new AbortController();
  send.textContent = "Stop";
  try {
    const reply = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ model, stream: true, messages: [{ role: "user", content: text }] }),
      signal: stop.signal,
    });
    if (!reply.ok) throw new Error((await reply.json()).error.message);
    for await (const event of events(reply.body)) {
      if (event.error) throw new Error(event.error.message);
      for (const choice of event.choices) show(turn, choice.delta);
      follow(turn);
    }
  } catch (error) {
    add(turn, "p", "failed", error.name === "AbortError" ? "stopped" : error.message);
    follow(turn);
  }
  turn.removeAttribute("aria-busy");
  stop = null;
  send.textContent = "Ask";
  question.focus({ preventScroll: true });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (stop) stop.abort();
  else if (text && model) {
    question.value = "";
    ask(text);
  }
});
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!stop) form.requestSubmit();
  }
});
fetch("/v1/models").then((reply) => reply.json()).then((found) => {
  model = found.data.map((m) => m.id).find((id) => id.endsWith(":agent"));
  byId("model").textContent = model.replace(/:agent$/, "");
  question.focus();
});
