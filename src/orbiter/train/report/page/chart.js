// Curves over the steps as SVG; all charts of a group share one cursor, which arrow keys move.

const HEIGHT = 176;
const MARGIN = { left: 46, right: 10, top: 10, bottom: 22 };

// The cursor that the charts of one training share.
function makeCursor() {
  const listeners = new Set();
  return {
    step: null,
    point(step) {
      this.step = step;
      for (const listener of listeners) listener(step);
    },
    follow: (listener) => listeners.add(listener),
  };
}

// lines: [{name, steps, values, colour, band?, sparse?}]
function chart({ id, title, note, lines, cursor, smoothing }) {
  const drawn = lines.map((line) => {
    const sparse = line.values.filter(isNumber).length < 0.6 * line.values.length;
    return { ...line, sparse, shown: sparse ? line.values : smooth(line.values, smoothing) };
  });
  const legend = el("ul", { class: "legend" });
  const readout = drawn.map((line) => {
    const value = el("b", {});
    const swatch = svg("svg", { viewBox: "0 0 14 8", class: `swatch ${line.colour}`, "aria-hidden": "true" },
      svg("path", { d: "M0 4H14" }));
    legend.append(el("li", {}, swatch, ` ${line.name} `, value));
    return value;
  });
  const where = el("span", { class: "where" });
  const stage = svg("svg", {
    class: "chart", tabindex: "0", role: "img", id,
    "aria-label": `${title}: ${drawn.map(describe).join("; ")}. Arrow keys move along the steps.`,
  });
  const figure = el("figure", {},
    el("figcaption", {}, el("h3", {}, title, where), legend), stage,
    note ? el("p", { class: "note" }, note) : null);
  const plot = { lines: drawn, stage, cursor, width: 0 };
  const tell = (step) => {
    plot.move?.(step);
    where.replaceChildren(step === null ? "" : `step ${step}`);
    drawn.forEach((line, place) => readout[place].replaceChildren(num(valueAt(line, step))));
  };
  cursor.follow(tell);
  new ResizeObserver(([entry]) => {
    const width = Math.round(entry.contentRect.width);
    if (width && width !== plot.width) {
      plot.width = width;
      draw(plot);
      tell(cursor.step);
    }
  }).observe(stage);
  listen(plot);
  return figure;
}

function describe(line) {
  const known = line.values.filter(isNumber);
  if (!known.length) return `${line.name}, no value`;
  return `${line.name} from ${num(known[0])} to ${num(known[known.length - 1])}`;
}

function valueAt(line, step) {
  if (step === null) return line.values.findLast((value) => value !== null) ?? null;
  let found = null;
  for (let at = 0; at < line.steps.length && line.steps[at] <= step; at += 1) {
    if (line.values[at] !== null) found = line.values[at];
  }
  return found;
}

function listen({ lines, stage, cursor, ...rest }) {
  const steps = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
  const nearest = (step) => steps.reduce((a, b) => (Math.abs(b - step) < Math.abs(a - step) ? b : a), steps[0]);
  stage.addEventListener("pointermove", (event) => {
    const box = stage.getBoundingClientRect();
    const inner = box.width - MARGIN.left - MARGIN.right;
    const share = (event.clientX - box.left - MARGIN.left) / inner;
    const [first, last] = [steps[0], steps[steps.length - 1]];
    cursor.point(nearest(first + Math.max(0, Math.min(1, share)) * (last - first)));
  });
  stage.addEventListener("pointerleave", () => cursor.point(null));
  stage.addEventListener("blur", () => cursor.point(null));
  stage.addEventListener("keydown", (event) => {
    const size = event.shiftKey ? 10 : 1;
    const at = cursor.step === null ? steps.length - 1 : steps.indexOf(nearest(cursor.step));
    const to = { ArrowLeft: at - size, ArrowRight: at + size, Home: 0, End: steps.length - 1 }[event.key];
    if (event.key === "Escape") cursor.point(null);
    if (to === undefined) return;
    event.preventDefault();
    cursor.point(steps[Math.max(0, Math.min(steps.length - 1, to))]);
  });
}

function draw(plot) {
  const { lines, stage, width } = plot;
  const range = extent(lines);
  const steps = lines.flatMap((line) => line.steps);
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  const inner = width - MARGIN.left - MARGIN.right;
  const tall = HEIGHT - MARGIN.top - MARGIN.bottom;
  const x = (step) => MARGIN.left + (last > first ? (step - first) / (last - first) : 0.5) * inner;
  const y = (value) => MARGIN.top + (1 - (value - range.low) / (range.high - range.low)) * tall;
  const line = svg("path", { class: "cursor", d: "" });
  const dots = lines.map((each) => svg("circle", { class: `dot ${each.colour}`, r: 3.5, visibility: "hidden" }));
  stage.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  stage.setAttribute("height", HEIGHT);
  stage.replaceChildren(
    ...axes({ x, y, range, first, last, width }),
    ...lines.flatMap((each) => [band(each, x, y), ...curve(each, x, y), ...faults(each, x)]),
    line, ...dots,
  );
  plot.move = (step) => {
    line.setAttribute("d", step === null ? "" : `M${x(step)} ${MARGIN.top}V${HEIGHT - MARGIN.bottom}`);
    lines.forEach((each, place) => {
      const value = step === null ? null : valueAt({ ...each, values: each.shown }, step);
      dots[place].setAttribute("visibility", isNumber(value) ? "visible" : "hidden");
      if (!isNumber(value)) return;
      dots[place].setAttribute("cx", x(step));
      dots[place].setAttribute("cy", y(value));
    });
  };
}

function extent(lines) {
  const edges = ({ shown, band: half }) => (half ? shown.flatMap((value, at) => (isNumber(value) && isNumber(half[at]) ? [value - half[at], value + half[at]] : [])) : []);
  const values = lines.flatMap((line) => [...line.values.filter(isNumber), ...edges(line)]);
  if (!values.length) return { low: 0, high: 1 };
  let low = values.reduce((a, b) => Math.min(a, b));
  let high = values.reduce((a, b) => Math.max(a, b));
  if (low === high) [low, high] = low === 0 ? [0, 1] : [low - Math.abs(low) / 2, high + Math.abs(high) / 2];
  if (low > 0 && low < 0.35 * high) low = 0;
  const air = 0.05 * (high - low);
  return { low: low === 0 ? 0 : low - air, high: high + air };
}

function axes({ x, y, range, first, last, width }) {
  const across = last > first ? ticks(first, last, Math.max(2, Math.floor(width / 90))).filter(Number.isInteger) : [first];
  return [
    ...ticks(range.low, range.high, 4).flatMap((value) => [
      svg("path", { class: value === 0 ? "grid zero" : "grid", d: `M${MARGIN.left} ${y(value)}H${width - MARGIN.right}` }),
      svg("text", { class: "tick", x: MARGIN.left - 7, y: y(value) + 4, "text-anchor": "end" }, num(value)),
    ]),
    ...across.map((step) => svg("text", {
      class: "tick", x: x(step), y: HEIGHT - 5,
      "text-anchor": x(step) > width - 24 ? "end" : "middle",
    }, num(step))),
  ];
}

function path(line, values, x, y) {
  let d = "";
  let pen = false;
  values.forEach((value, at) => {
    if (isNumber(value)) {
      d += `${pen ? "L" : "M"}${x(line.steps[at]).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = true;
    } else if (!line.sparse) {
      pen = false;
    }
  });
  return d;
}

function curve(line, x, y) {
  if (line.sparse || line.values.filter(isNumber).length === 1) {
    const places = line.values.map((value, at) => [line.steps[at], value]).filter(([, value]) => isNumber(value));
    return [
      svg("path", { class: `line ${line.colour}`, d: path(line, line.values, x, y) }),
      ...places.map(([step, value]) => svg("circle", { class: `dot ${line.colour}`, r: 3, cx: x(step), cy: y(value) })),
    ];
  }
  return [
    svg("path", { class: `line raw ${line.colour}`, d: path(line, line.values, x, y) }),
    svg("path", { class: `line ${line.colour}`, d: path(line, line.shown, x, y) }),
  ];
}

function band(line, x, y) {
  if (!line.band) return null;
  const known = line.shown.map((value, at) => [at, value, line.band[at]]).filter(([, v, b]) => isNumber(v) && isNumber(b));
  const edge = (rows, sign) => rows.map(([at, value, half]) => `${x(line.steps[at]).toFixed(1)} ${y(value + sign * half).toFixed(1)}`);
  return svg("path", { class: `band ${line.colour}`, d: known.length ? `M${[...edge(known, 1), ...edge(known.toReversed(), -1)].join("L")}Z` : "" });
}

// Steps at which a value was not finite, which shows where a run diverged.
function faults(line, x) {
  const places = line.values.map((value, at) => [line.steps[at], value]).filter(([, value]) => typeof value === "string");
  return places.slice(0, 20).flatMap(([step, value], at) => [
    svg("path", { class: "fault", d: `M${x(step)} ${MARGIN.top}V${HEIGHT - MARGIN.bottom}` }),
    at === 0 ? svg("text", { class: "tick fault", x: x(step) - 4, y: MARGIN.top + 10, "text-anchor": "end" }, value) : null,
  ]).filter(Boolean);
}
