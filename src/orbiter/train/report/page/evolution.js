// An evolution: its scores over time, and the texts from the first candidate to the best.

function evolutionSection(run) {
  if (!run.evolutions.length) return null;
  return section("evolution", "Evolution", null, run.evolutions.map((doc, at) => oneEvolution(doc, at, run.evolutions.length > 1)));
}

function oneEvolution(doc, at, several) {
  const best = doc.best === null ? null : doc.members[doc.best];
  const steps = doc.trials.map(([number]) => number);
  const lines = [
    { name: "best so far", steps, values: doc.trials.map(([, , top]) => top), colour: "c0" },
    { name: "each evaluation", steps, values: doc.trials.map(([, score]) => score), colour: "c1 dotted" },
  ];
  const family = line(doc, doc.best);
  const items = doc.members.map((member, key) => ({
    key, member,
    words: [member.name, member.text ?? "", ...(member.diff ?? []).map(([, text]) => text)].join("\n").toLowerCase(),
    row: () => [
      el("span", { class: "line" }, member.name, family.includes(key) ? el("span", { class: "tag" }, key === doc.best ? "best" : "its line") : ""),
      el("span", { class: "value" }, member.error && member.score === null ? "failed" : num(member.score)),
    ],
    detail: (words, jump) => memberDetail(doc, key, words, jump),
  }));
  const name = several ? `${doc.name}: ` : "";
  const cost = doc.cost ? `, cost ${num(doc.cost)}` : "";
  return [
    el("p", { class: "lead" }, `${name}${plural(doc.members_in_all, "candidate")}, ${plural(doc.evaluations, "evaluation")}${doc.failures ? `, ${doc.failures} failed` : ""}${cost}.`,
      best ? ` Best: ${best.name} at ${num(best.score)}.` : ""),
    doc.trials.length > 1 ? chart({ id: `evolution-chart-${at}`, title: "Score", lines, cursor: makeCursor(), smoothing: 0, note: "Over the evaluations, in the order in which they finished." }) : null,
    best ? [el("h3", {}, "Ancestry of the best"), el("ol", { class: "lineage" }, family.map((place) => el("li", {}, ancestor(doc, place))))] : null,
    el("h3", {}, "Candidates"),
    browser({
      id: `members-${at}`, items, hint: "Search candidates",
      filters: { "ancestry of the best": (item) => family.includes(item.key), failed: (item) => item.member.score === null },
      sorts: { "best first": (a, b) => (b.member.score ?? -Infinity) - (a.member.score ?? -Infinity), "by birth": (a, b) => a.key - b.key },
      empty: { noun: "candidate", text: "No candidate yet." },
    }),
  ];
}

function line(doc, place) {
  const seen = [];
  for (let at = place; at !== null && at !== undefined && !seen.includes(at); at = doc.members[at].parents[0]) seen.unshift(at);
  return seen;
}

function ancestor(doc, place, words = []) {
  const member = doc.members[place];
  return [
    el("p", { class: "meta" }, el("b", {}, member.name), ` scored ${num(member.score)}`, member.n > 1 ? ` over ${member.n} evaluations` : ""),
    member.diff ? diff(member.diff, words) : el("pre", { class: "text" }, member.text === undefined ? el("i", {}, "Its text was not kept.") : marked(member.text, words)),
  ];
}

function memberDetail(doc, key, words, jump) {
  const member = doc.members[key];
  return el("article", {}, ancestor(doc, key, words),
    member.error ? el("p", { class: "chip warn" }, member.error) : null,
    member.parents.length ? el("p", { class: "meta" }, "From ", member.parents.map((parent) => [
      el("button", { type: "button", class: "link", on: { click: () => jump(parent) } }, doc.members[parent].name), " "])) : null);
}

function diff(pieces, words) {
  const tag = { "=": "span", "-": "del", "+": "ins" };
  return el("pre", { class: "text diff" }, pieces.map(([kind, text]) => el(tag[kind] ?? "span", {}, marked(text, words))));
}
