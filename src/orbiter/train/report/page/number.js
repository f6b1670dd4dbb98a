// Formats numbers for readers.

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

function num(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (!isNumber(value)) return String(value);
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e6) return `${trim((value / 1e6).toPrecision(3))} M`;
  if (size >= 1e4) return `${trim((value / 1e3).toPrecision(3))} k`;
  if (size < 1e-3) return value.toExponential(1).replace("e-", "e−").replace(".0", "");
  return trim(size >= 100 ? value.toFixed(size >= 1000 || Number.isInteger(value) ? 0 : 1) : value.toPrecision(digits));
}

const trim = (text) => minus(text.includes(".") ? text.replace(/\.?0+$/, "") : text);
const minus = (text) => text.replace(/^-/, "−");

function signed(value, digits) {
  if (!isNumber(value)) return num(value);
  return value > 0 ? `+${num(value, digits)}` : num(value, digits);
}

function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  if (seconds < 60) return `${num(seconds, 2)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}

// Formats an interval [mean, low, high, n], as a number or in per cent.
function ranged([mean, low, high], percent, sign) {
  const show = percent ? (value) => minus((100 * value).toFixed(1)) : (value) => num(value);
  const plus = sign && mean > 0 ? "+" : "";
  const ends = low === null ? "" : ` [${show(low)},\u00a0${show(high)}]`;
  return `${plus}${show(mean)}${percent && !sign ? " %" : ""}${ends}`;
}

const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

// Round positions for the ticks of an axis.
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const places = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) places.push(at * step);
  return places;
}

// Smooths a curve: an exponential mean with weight `share` for the past, without bias at the start.
function smooth(values, share) {
  let sum = 0;
  let weight = 0;
  return values.map((value) => {
    if (!isNumber(value)) return null;
    sum = share * sum + (1 - share) * value;
    weight = share * weight + (1 - share);
    return sum / weight;
  });
}
