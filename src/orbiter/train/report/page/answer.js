// Formats a model's answer: tool calls become a name with arguments, other text stays as it is.

const TAGGED = /<(tool_call|function_call)>([\s\S]*?)(?:<\/\1>|$)/g;

function parts(text) {
  const found = [];
  let at = 0;
  for (const match of text.matchAll(TAGGED)) {
    const calls = fromJson(match[2]) ?? fromPython(match[2]);
    if (!calls) continue;
    found.push(text.slice(at, match.index), ...calls);
    at = match.index + match[0].length;
  }
  if (found.length) return [...found, text.slice(at)];
  return fromJson(text) ?? fromPython(text) ?? [text];
}

function fromJson(text) {
  try {
    const value = JSON.parse(text);
    const calls = (Array.isArray(value) ? value : [value]).map((one) => one?.function ?? one);
    if (!calls.length || !calls.every((one) => typeof one?.name === "string" && "arguments" in one)) return null;
    return calls.map(({ name, arguments: given }) => ({ name, given: named(given) }));
  } catch {
    return null;
  }
}

function named(given) {
  if (typeof given === "string") {
    try {
      return named(JSON.parse(given));
    } catch {
      return [["", given]];
    }
  }
  if (given === null || typeof given !== "object" || Array.isArray(given)) return [["", JSON.stringify(given)]];
  return Object.entries(given).map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]);
}

// Matches name(a=1, b='x, y') with nothing around it.
function fromPython(text) {
  const match = /^\s*\[?\s*([A-Za-z_][\w.]{0,120})\(([\s\S]{0,1200})\)\s*\]?\s*$/.exec(text);
  if (!match) return null;
  const given = split(match[2]);
  return given && [{ name: match[1], given: given.map(pair) }];
}

function pair(argument) {
  const match = /^([A-Za-z_]\w*)\s*=(?!=)\s*([\s\S]*)$/.exec(argument);
  return match ? [match[1], match[2]] : ["", argument];
}

// Splits at commas outside quotes and brackets; returns null if those are not balanced.
function split(text) {
  const pieces = [""];
  const open = [];
  let quote = null;
  for (let at = 0; at < text.length; at += 1) {
    const letter = text[at];
    if (quote) {
      if (letter === "\\") {
        pieces[pieces.length - 1] += letter + (text[at + 1] ?? "");
        at += 1;
        continue;
      }
      if (letter === quote) quote = null;
    } else if (letter === "'" || letter === '"') {
      quote = letter;
    } else if ("([{".includes(letter)) {
      open.push({ "(": ")", "[": "]", "{": "}" }[letter]);
    } else if (")]}".includes(letter) && open.pop() !== letter) {
      return null;
    } else if (letter === "," && !open.length) {
      pieces.push("");
      continue;
    }
    pieces[pieces.length - 1] += letter;
  }
  if (quote || open.length) return null;
  return pieces.map((piece) => piece.trim()).filter(Boolean);
}

function answer(text, words = []) {
  if (state.raw || text === "") return el("pre", { class: "text" }, text === "" ? el("i", {}, "empty") : marked(text, words));
  return el("div", {}, parts(text).map((part) => {
    if (typeof part === "string") return part.trim() ? el("pre", { class: "text" }, marked(part, words)) : null;
    return toolCall(part.name, part.given, words);
  }));
}

function toolCall(name, given, words = []) {
  return el("div", { class: "call" },
    el("code", { class: "tool" }, marked(name, words)),
    el("dl", {}, given.map(([key, value]) => [
      el("dt", {}, key ? marked(key, words) : el("span", { class: "dim" }, "·")), el("dd", {}, marked(String(value), words)),
    ])));
}
