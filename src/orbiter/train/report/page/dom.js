// Builds elements without an HTML parser, so that model output can only ever become text.

const SVG = "http://www.w3.org/2000/svg";

function el(name, props, ...children) {
  return fill(document.createElement(name), props, children);
}

function svg(name, props, ...children) {
  return fill(document.createElementNS(SVG, name), props, children);
}

function fill(node, props, children) {
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "on") {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else {
      node.setAttribute(key, value === true ? "" : value);
    }
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

function section(id, title, lead, ...children) {
  const heading = el("h2", { id: `${id}-title` }, title);
  const words = lead ? el("p", { class: "lead" }, lead) : null;
  return el("section", { id, "aria-labelledby": `${id}-title` }, heading, words, ...children);
}

// The text of a column heading; a narrow screen shows it in front of each value.
const headText = (cell) => (typeof cell === "string" ? cell : cell?.number ?? "");

function table(head, rows, props) {
  const cell = (kind) => (value, column) => {
    const number = value && value.number;
    const content = number ? value.number : value;
    const scope = kind === "th" ? { scope: "col" } : {};
    return el(column === 0 && kind === "td" ? "th" : kind, {
      ...(column === 0 && kind === "td" ? { scope: "row" } : scope),
      class: number ? "number" : null,
      "data-label": kind === "td" ? headText(head[column]) : null,
    }, content);
  };
  const body = rows.map((row) => el("tr", { class: row.kind }, row.map(cell("td"))));
  return el("div", { class: `scroll ${props?.kind ?? ""}`, tabindex: "0", role: "region", "aria-label": props?.label ?? "table" },
    el("table", {}, el("thead", {}, el("tr", {}, head.map(cell("th")))), el("tbody", {}, body)));
}

// Highlights the search words in a text.
function marked(text, words) {
  if (!words.length) return [text];
  const lower = text.toLowerCase();
  // Lower-casing can change a text's length; then the positions would be wrong.
  if (lower.length !== text.length) return [text];
  const parts = [];
  let at = 0;
  while (at < text.length) {
    const hits = words.map((word) => [lower.indexOf(word, at), word.length]).filter(([place]) => place >= 0);
    if (!hits.length) break;
    const [place, length] = hits.reduce((a, b) => (b[0] < a[0] || (b[0] === a[0] && b[1] > a[1]) ? b : a));
    parts.push(text.slice(at, place), el("mark", {}, text.slice(place, place + length)));
    at = place + length;
  }
  return [...parts, text.slice(at)];
}
