// Episodes of an agent: turn by turn, the attempts at one task side by side.

const ENDS = {
  done: "done", max_turns: "ran out of turns", max_tokens: "ran out of tokens", context: "context full",
  max_response: "answer cut off",
  timeout: "timed out", agent_error: "agent raised", no_calls: "no model call",
};
const FAILED = new Set(["timeout", "agent_error", "no_calls"]);
const LIMITS = new Set(["max_turns", "max_tokens", "context", "max_response"]);

const isEpisodes = (group) => group.outputs.some((output) => output.turns);
const endedBy = (group, reasons) => group.outputs.some((output) => reasons.has(output.stop_reason));

function episodeFilters(groups) {
  if (!groups.some(isEpisodes)) return {};
  return {
    "with failed episodes": (item) => endedBy(item.group, FAILED),
    "that ran into a limit": (item) => endedBy(item.group, LIMITS),
    "all rewards alike": (item) => item.range === 0,
  };
}

const wordsOfTurns = (output) => (output.turns ?? []).flatMap((turn) => [...turn.asked, turn.answer])
  .flatMap((message) => [message.text, ...(message.calls ?? []).flatMap((call) => [call.name, call.arguments])]);

function episodes(ordered, scale, words) {
  const shared = sharedStart(ordered);
  return [
    shared.length ? [el("h4", {}, "Every attempt begins with"), el("div", { class: "chat" }, shared.map((message) => said(message, words)))] : null,
    el("ol", { class: "episodes", tabindex: "0", "aria-label": "attempts side by side" },
      ordered.map((output, at) => oneEpisode(output, at, shared.length, scale, words))),
  ];
}

// The messages that all attempts were asked first: shown once.
function sharedStart(outputs) {
  const first = outputs.map((output) => output.turns?.[0]?.asked ?? []);
  const same = JSON.stringify(first[0]);
  return first.length && first.every((asked) => JSON.stringify(asked) === same) ? first[0] : [];
}

function oneEpisode(output, at, skipped, scale, words) {
  const turns = output.turns ?? [];
  const rows = turns.flatMap((turn, place) => {
    const gap = place && turn.number > turns[place - 1].number + 1 ? turn.number - turns[place - 1].number - 1 : 0;
    return [
      gap ? el("li", { class: "gap" }, `${plural(gap, "turn")} left out`) : null,
      oneTurn(turn, turn.number === 1 ? skipped : 0, scale, words),
    ];
  });
  return el("li", { class: FAILED.has(output.stop_reason) ? "episode failed" : "episode" },
    el("header", {},
      el("span", { class: "who" }, output.name ?? `Attempt ${at + 1}`),
      el("span", { class: "total" }, output.reward === null ? "no reward" : num(output.reward)),
      isNumber(output.advantage) ? el("span", { class: "advantage", title: "advantage: how much better than the rest of its group" },
        lean(output.advantage, scale.lean), signed(output.advantage, 2)) : null),
    el("p", { class: "chips" },
      output.stop_reason ? el("span", { class: output.stop_reason === "done" ? "chip quiet" : "chip warn" }, ENDS[output.stop_reason] ?? output.stop_reason) : null,
      el("span", { class: "chip quiet" }, plural(output.turns_in_all ?? turns.length, "turn")),
      output.tokens ? el("span", { class: "chip quiet" }, plural(output.tokens, "token")) : null,
      Object.entries(output.rewards).map(([name, value]) => el("span", { class: "chip" }, name, " ", el("b", {}, num(value))))),
    output.error ? el("pre", { class: "text error" }, marked(output.error, words)) : null,
    el("ol", { class: "turns" }, rows),
    output.text && output.text !== turns.at(-1)?.answer.text ? [el("h4", {}, "Result"), answer(output.text, words)] : null);
}

function oneTurn(turn, skipped, scale, words) {
  return el("li", { class: "chat" },
    el("p", { class: "chips" }, el("span", { class: "chip quiet" }, `turn ${turn.number}`),
      turn.tokens ? el("span", { class: "chip quiet" }, plural(turn.tokens, "token")) : null,
      turn.cut_off ? el("span", { class: "chip warn" }, "cut off") : null,
      isNumber(turn.reward) ? el("span", { class: "chip" }, "reward ", el("b", {}, num(turn.reward))) : null,
      isNumber(turn.advantage) ? el("span", { class: "chip", title: "advantage of this turn" }, "advantage ", el("b", {}, signed(turn.advantage, 2))) : null),
    turn.asked.slice(skipped).map((message) => said(message, words)),
    said({ ...turn.answer, role: "policy" }, words));
}

function said(message, words) {
  return el("div", { class: `turn ${message.role === "policy" ? "policy" : ""}` },
    el("span", { class: "role" }, message.role),
    message.text ? el("pre", { class: "text" }, marked(message.text, words)) : null,
    (message.calls ?? []).map((call) => toolCall(call.name, named(call.arguments), words)));
}
