// The labelling page: shows one unit, takes a key or a click, and shows the next one.

const state = { now: JSON.parse(document.getElementById("data").textContent), since: performance.now(), busy: false, trouble: "" };
const drafts = new Map(); // notes that are written but not saved, by place
const WAIT = 20_000; // milliseconds for an answer of the command

function choices() {
  const { kind, scale } = state.now;
  if (kind === "better") {
    return [["left", "Left is better", ["1", "ArrowLeft"]], ["equal", "Equally good", ["0", "="]], ["right", "Right is better", ["2", "ArrowRight"]]];
  }
  if (kind === "right") return [[true, "Right", ["1", "r"]], [false, "Wrong", ["0", "w"]]];
  return Array.from({ length: scale }, (_, at) => [at + 1, String(at + 1), [String(at + 1)]]);
}

const KEYS = { ArrowLeft: "←", ArrowRight: "→", Backspace: "⌫" };
const key = (name) => el("kbd", {}, KEYS[name] ?? name);

function draw() {
  const { now } = state;
  const finished = now.place >= now.total;
  document.title = finished ? "All labelled" : `${now.place + 1} of ${now.total}`;
  document.getElementById("top").replaceChildren(
    el("h1", {}, { better: "Which answer is better?", right: "Is this answer right?", rating: `How good is this answer, from 1 to ${now.scale}?` }[now.kind]),
    el("span", {}, el("progress", { max: now.total, value: now.done, "aria-label": "Progress" }), el("span", { id: "count" }, ` ${now.done} of ${now.total}`)));
  document.getElementById("main").replaceChildren(...(finished ? closing() : unit()));
  document.getElementById("foot").replaceChildren(`Labels of ${now.rater}. Each one is saved at once; you may close the page and come back.`);
  state.since = performance.now();
}

function closing() {
  const left = state.now.total - state.now.done;
  return [
    el("p", { id: "finished", role: "status" }, left ? `${left} are still without a label.` : "Everything is labelled. You can close this page and stop the command."),
    el("p", { class: "error", role: "alert", id: "error" }, state.trouble),
    el("div", { class: "choices" }, el("button", { type: "button", id: "back", on: { click: back } }, "Back", key("Backspace"))),
  ];
}

function unit() {
  const { now } = state;
  const names = now.answers.length > 1 ? ["Left", "Right"] : ["Answer"];
  return [
    el("h2", { id: "task-title" }, "Task"),
    el("pre", { id: "task", tabindex: "0", "aria-labelledby": "task-title" }, now.task),
    el("div", { class: "sides" }, now.answers.map((answer, at) => el("div", {},
      el("h2", { id: `side-${at}` }, names[at]), el("pre", { class: "answer", tabindex: "0", "aria-labelledby": `side-${at}` }, answer)))),
    el("div", { class: "choices", role: "group", "aria-label": "Label" }, choices().map(([value, words, keys]) => el("button", {
      type: "button", "data-value": String(value), "aria-pressed": now.given ? String(now.given.value === value) : null, on: { click: () => send(value) },
    }, words, keys.filter((name) => name !== words).map(key)))),
    el("label", {}, el("h2", {}, "Note", key("n")), el("textarea", { id: "note", maxlength: "10000" })),
    el("p", { class: "error", role: "alert", id: "error" }, state.trouble),
    el("div", { class: "choices" },
      el("button", { type: "button", id: "skip", on: { click: () => send(null) } }, "Skip", key("s")),
      el("button", { type: "button", id: "back", disabled: now.place === 0, on: { click: back } }, "Back", key("Backspace"))),
  ];
}

function show(now, history_entry) {
  state.now = now;
  state.trouble = "";
  draw();
  const note = document.getElementById("note");
  if (note) note.value = drafts.get(now.place) ?? now.given?.note ?? "";
  if (history_entry) history[history_entry]({ place: now.place }, "");
  document.getElementById("main").focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

function keepDraft() {
  const note = document.getElementById("note");
  if (!note) return;
  if (note.value === (state.now.given?.note ?? "")) drafts.delete(state.now.place);
  else drafts.set(state.now.place, note.value);
}

function fail(words) {
  state.trouble = words;
  const line = document.getElementById("error");
  if (line) line.replaceChildren(words);
}

async function ask(address, options, history_entry = "pushState") {
  if (state.busy) return;
  state.busy = true;
  keepDraft();
  const { place } = state.now;
  try {
    const reply = await fetch(address, { ...options, signal: AbortSignal.timeout(WAIT) });
    if (reply.ok) {
      if (options) drafts.delete(place); // it is saved with the label
      show(await reply.json(), history_entry);
    } else if (reply.status === 409) {
      const now = await reply.json(), mine = drafts.get(place), saved = now.given?.note;
      if (mine && saved && mine !== saved) drafts.set(place, `${saved}\n${mine}`);
      show(now);
      fail("Not saved: you labelled this in another tab or window meanwhile, as shown. Choose again to replace that label.");
    } else if (reply.status === 404) {
      fail("Not saved: this page is from an earlier start of the command. Open the address that it has printed.");
    } else fail(`Not saved: ${(await reply.text()).trim()}`);
  } catch {
    fail("Not saved: the command that serves this page has stopped or does not answer. Start it again, and open the address that it prints.");
  } finally {
    state.busy = false;
  }
}

function send(value) {
  if (state.now.place >= state.now.total) return;
  const seconds = Math.round(performance.now() - state.since) / 1000;
  const { place, version } = state.now;
  const body = JSON.stringify({ place, version, value, note: document.getElementById("note").value, seconds });
  ask("label", { method: "POST", headers: { "Content-Type": "application/json" }, body });
}

function back() {
  if (state.now.place > 0) ask(`unit/${state.now.place - 1}`);
}

document.addEventListener("keydown", (event) => {
  const note = document.getElementById("note");
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target === note) {
    if (event.key === "Escape") document.getElementById("main").focus({ preventScroll: true });
    return;
  }
  const chosen = state.now.place < state.now.total && choices().find(([, , keys]) => keys.includes(event.key));
  const actions = { s: () => send(null), n: () => note?.focus(), Backspace: back };
  const action = chosen ? () => send(chosen[0]) : actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

// The browser's own buttons go from unit to unit, as Back does.
window.addEventListener("popstate", (event) => {
  if (Number.isInteger(event.state?.place)) ask(`unit/${event.state.place}`, undefined, null);
});
window.addEventListener("beforeunload", (event) => {
  keepDraft();
  if (drafts.size) event.preventDefault(); // asks before a note is lost
});

show(state.now, "replaceState");
document.documentElement.setAttribute("data-ready", "1");
