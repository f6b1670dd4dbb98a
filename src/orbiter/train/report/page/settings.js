// The settings of the run, and its environment.

// sides: [{label, run}]
function settingsSection(sides) {
  const names = [...new Set(sides.flatMap(({ run }) => run.trainings.map((training) => training.name)))];
  const pairs = pairsOf(sides);
  const facts = sides.map(({ run }) => run.facts);
  const blocks = [
    facts.some((one) => Object.keys(one).length) ? grid("facts", "The run", sides, facts) : null,
    ...pairs.map(({ name, sides: parts }) => grid(`config ${name}`, pairs.length > 1 ? `Settings of ${name}` : "Settings", parts, parts.map(({ training }) => flat(training.config)))),
    ...sides.flatMap(({ run }, at) => run.evolutions.map((doc) => grid(`evolution ${at} ${doc.name}`, `Evolution ${doc.name}`, [{ label: "" }], [flat(doc.settings)]))),
    environment(pairs),
  ].filter(Boolean);
  return blocks.length && (names.length || blocks.length) ? section("settings", "Settings and environment", null, el("div", { class: "settings" }, blocks)) : null;
}

function environment(pairs) {
  const last = pairs[pairs.length - 1];
  if (!last || !last.sides.some(({ training }) => Object.keys(training.environment).length)) return null;
  return grid("environment", "Environment", last.sides, last.sides.map(({ training }) => flat(training.environment)));
}

function grid(key, title, sides, columns) {
  const names = [...new Set(columns.flatMap((column) => Object.keys(column)))];
  const two = columns.length > 1;
  const differs = (name) => two && columns.some((column) => shown(column[name]) !== shown(columns[0][name]));
  const rows = names.toSorted((a, b) => differs(b) - differs(a)).map((name) => {
    const row = [name, ...columns.map((column) => el("code", {}, shown(column[name])))];
    row.kind = differs(name) ? "differs" : null;
    return row;
  });
  const body = table([two ? `${title}, differences first` : title, ...sides.map(({ label }) => (two ? label : ""))], rows, { label: title });
  const heading = el("summary", {}, title, el("span", { class: "dim" }, two ? ` ${names.filter(differs).length} of ${names.length} differ` : ` ${names.length}`));
  const open = state.open[key] ?? names.length < 60;
  return el("details", { open, on: { toggle: (event) => { state.open[key] = event.target.open; } } }, heading, body);
}

const shown = (value) => (value === undefined ? "–" : typeof value === "string" ? value : value === null ? "none" : JSON.stringify(value));

function flat(config, before = "") {
  return Object.assign({}, ...Object.entries(config).map(([name, value]) => (
    value && typeof value === "object" && !Array.isArray(value) ? flat(value, `${before}${name}.`) : { [before + name]: value })));
}
