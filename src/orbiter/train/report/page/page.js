// The page: reads its document, draws it, keeps what the reader chose, follows a running job.

const began = performance.now();
const doc = { now: JSON.parse(document.getElementById("data").textContent) };
const state = { browsers: {}, open: {}, raw: false, smoothing: 0.6, tab: null, tag: null, trouble: false };
const THEMES = ["system", "light", "dark"];
const theme = { chosen: stored() };

// A page opened from disk may have no local storage.
function stored() {
  try {
    return THEMES.includes(localStorage.getItem("orbiter-theme")) ? localStorage.getItem("orbiter-theme") : "system";
  } catch {
    return "system";
  }
}

function setTheme(chosen) {
  theme.chosen = chosen;
  if (chosen === "system") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.setAttribute("data-theme", chosen);
  try {
    localStorage.setItem("orbiter-theme", chosen);
  } catch { /* without storage the choice lasts as long as the page */ }
}

// Pairs the parts of one or two runs: by name, or else by position.
function pairsOf(sides) {
  if (sides.length === 1) {
    return sides[0].run.trainings.map((training) => ({ name: training.name, kind: training.kind, sides: [{ ...sides[0], training }] }));
  }
  const [a, b] = sides;
  const lone = a.run.trainings.length === 1 && b.run.trainings.length === 1;
  return a.run.trainings.flatMap((training) => {
    const other = lone ? b.run.trainings[0] : b.run.trainings.find(({ name, kind }) => name === training.name && kind === training.kind);
    return other ? [{ name: lone ? "training" : training.name, kind: training.kind, sides: [{ ...a, training }, { ...b, training: other }] }] : [];
  });
}

function contents() {
  const sides = doc.now.runs.map((run, at) => ({ run, label: doc.now.runs.length > 1 ? `${"AB"[at]} ${run.name}` : run.name }));
  if (sides.length > 1) return comparison(sides);
  const { run } = sides[0];
  if (run.traces) return [samplesSection(run)].filter(Boolean);
  return [
    comparedSection(run.comparison), resultSection(run), curvesSection(pairsOf(sides)), samplesSection(run), answersSection(run),
    ledgerSection(run), evolutionSection(run), settingsSection(sides),
  ].filter(Boolean);
}

function comparison(sides) {
  const halves = (draw) => el("div", { class: "halves" }, sides.map((side, at) => el("div", {}, el("h3", { class: `side c${at}` }, side.label), draw(side.run, at))));
  const pairs = pairsOf(sides);
  return [
    comparedSection(sides.find(({ run }) => run.comparison)?.run.comparison),
    section("result", "Result", null, halves((run) => [tiles(run), exams(run.exams), gains(run.trainings)])),
    curvesSection(pairs), sharedSamples(pairs), settingsSection(sides),
    sides.some(({ run }) => run.ledger.length) ? section("data", "Data", null, halves((run) => {
      const ledger = ledgerSection(run);
      return ledger ? ledger.querySelector("ol") : el("p", { class: "empty" }, "No ledger.");
    })) : null,
  ].filter(Boolean);
}

// Prompts that both runs show, with the latest group of each run.
function sharedSamples(pairs) {
  const items = pairs.flatMap(({ sides }) => {
    const latest = sides.map(({ training }) => new Map(groupItems(training.groups).map((item) => [item.group.task ?? item.group.prompt, item])));
    return [...latest[0].keys()].filter((name) => latest[1].has(name)).map((name) => {
      const both = latest.map((side) => side.get(name));
      const change = (both[1].mean ?? 0) - (both[0].mean ?? 0);
      return {
        change, words: both.map((item) => item.words).join("\n"),
        row: () => [el("span", { class: "line" }, firstLine(both[0].group)), el("span", { class: "value" }, signed(change, 2))],
        detail: (words) => el("div", { class: "halves" }, both.map((item, at) => el("div", {},
          el("h3", { class: `side c${at}` }, sides[at].label), item.detail(words, () => {})))),
      };
    });
  }).map((item, key) => ({ ...item, key }));
  if (!items.length) return null;
  return section("samples", "Samples", "Prompts that both runs show; the number is B minus A, in mean reward of the latest group.",
    browser({
      id: "shared", items, filters: {}, hint: "Search prompts and outputs  ( / )",
      sorts: { "B better first": (a, b) => b.change - a.change, "A better first": (a, b) => a.change - b.change },
      empty: { noun: "prompt", text: "No prompt is in both runs." },
    }));
}

function top() {
  const [run, other] = doc.now.runs;
  const main = run.trainings[run.trainings.length - 1];
  const title = other ? `${run.name} against ${other.name}` : run.title;
  document.title = title;
  const choose = el("select", { id: "theme", "aria-label": "Colours", on: { change: () => setTheme(choose.value) } },
    THEMES.map((name) => el("option", { value: name, selected: name === theme.chosen }, { system: "as the system", light: "light", dark: "dark" }[name])));
  const machine = main && !other ? machineOf(main.environment) : null;
  const facts = [main?.config.model && !other ? String(run.trainings[0].config.model) : null, main && !other ? run.trainings.map(({ kind }) => kind).join(" → ") : null,
    main?.environment.began && !other ? `began ${String(run.trainings[0].environment.began).slice(0, 16).replace("T", " ")} UTC` : null].filter(Boolean);
  return el("div", { class: "bar" },
    el("div", {}, el("h1", {}, title), facts.length ? el("p", { class: "facts" }, facts.join("  ·  ")) : null,
      machine ? el("p", { class: "facts", id: "machine" }, machine) : null, run.summary && !other ? el("p", { class: "lead" }, run.summary) : null),
    el("div", { class: "tools" }, el("span", { id: "live", role: "status" }), choose));
}

// What computed the run, in one line: it decides how fast a run is, and the last bits of its numbers.
function machineOf(environment) {
  const { processor, instruction_set: instructions, threads, dtype, accelerator } = environment;
  return [accelerator, processor, instructions, isNumber(threads) ? plural(threads, "thread") : null, dtype]
    .filter((one) => one !== null && one !== undefined).map(String).join("  ·  ");
}

function render(focus) {
  const active = document.activeElement;
  const kept = focus ?? active?.id;
  const place = active && "selectionStart" in active ? active.selectionStart : null;
  const scrolled = [...document.querySelectorAll(".rows, .detail")].map((node) => [node.id, node.scrollTop]);
  const sections = contents();
  document.getElementById("top").replaceChildren(top());
  document.getElementById("sections").replaceChildren(...sections.map((one) => el("a", { href: `#${one.id}` }, one.querySelector("h2").textContent)));
  document.getElementById("main").replaceChildren(...sections);
  document.getElementById("foot").replaceChildren(`Made by orbiter-train ${doc.now.made.replace("T", " ").slice(0, 16)} UTC. This page makes no network requests. Press / to search.`);
  for (const [id, height] of scrolled) if (id) document.getElementById(id)?.scrollTo(0, height);
  const again = kept ? document.getElementById(kept) : null;
  again?.focus({ preventScroll: true });
  if (again && place !== null && again.type === "search") again.setSelectionRange(place, place);
  tellLive();
}

function tellLive() {
  if (!doc.now.live) return;
  const words = state.trouble ? "no longer served" : `live · ${new Date().toLocaleTimeString()}`;
  document.getElementById("live").replaceChildren(el("span", { class: state.trouble ? "lamp off" : "lamp" }), words);
}

async function follow() {
  try {
    const reply = await fetch("data", { headers: state.tag ? { "If-None-Match": state.tag } : {} });
    state.trouble = !(reply.ok || reply.status === 304);
    if (reply.ok) {
      state.tag = reply.headers.get("ETag");
      const text = await reply.text();
      if (text !== doc.text) {
        doc.text = text;
        doc.now = JSON.parse(text);
        render();
      }
    }
  } catch {
    state.trouble = true;
  }
  tellLive();
  setTimeout(follow, 2000);
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  const search = document.querySelector('input[type="search"]');
  if (!search) return;
  event.preventDefault();
  search.focus();
});

setTheme(theme.chosen);
render();
document.documentElement.setAttribute("data-ready", Math.round(performance.now()));
document.documentElement.setAttribute("data-drawing", Math.round(performance.now() - began));
if (doc.now.live) setTimeout(follow, 2000);
